"""The door of the service: what may come in, whatever route it asks for.

    app = Guard(app)

A page in the user's browser can send requests to this machine's own addresses, from a foreign origin or under a name that its DNS points
here. So a request must name this machine as its host, come from no page but the service's own, and bring JSON, which a page cannot send
across origins without being asked first. A body is read up to `MAX_BODY` bytes, however long it says it is, and for `BODY_SECONDS`.

Where there are keys (`keys`), every request but for health needs one, and then the service may be called by any name and listen anywhere.
A browser asks its user for one. It sends that along with what other sites make it ask for as well, so the rules above hold with keys too.
"""

import asyncio
import base64
import binascii
import ipaddress
import os
import re
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextlib import suppress
from typing import Any

import psutil

from prosemill.errors import ProsemillError
from prosemill.serving.errors import refusal
from prosemill.serving.keys import VARIABLE, Keys

MAX_BODY = 1_000_000  # bytes
BODY_SECONDS = 60.0  # in which a body must come
LOOPBACK = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?")
HEALTH = frozenset({"/livez", "/readyz"})
BEARER = re.compile(rb"bearer +(\S+)", re.IGNORECASE)
BASIC = re.compile(rb"basic +(\S+)", re.IGNORECASE)
CHALLENGE = 'Basic realm="Prosemill: a key as the password", charset="UTF-8"'
"""Has a browser ask for a key, and send it with all that the page asks for."""
WITHOUT_BODY = frozenset({"GET", "HEAD", "OPTIONS"})

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]


class Guard:
    """An ASGI application in front of another."""

    def __init__(self, app: Application, keys: Keys | None = None) -> None:
        """Guard an application, with the environment's keys if no others are given. Raises `ProsemillError` if these make no sense."""
        self._app, self._keys = app, keys or Keys.read(os.environ)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with why not."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] != "http":
            await self._app(scope, receive, send)
        elif (fault := self._fault(scope)) is not None:
            answer = refusal(*fault)
            if answer.status_code == 401:
                answer.headers["WWW-Authenticate"] = CHALLENGE
            await answer(scope, receive, send)
        elif scope["method"] in WITHOUT_BODY:
            await self._app(scope, receive, send)
        else:
            await self._pass_on_with_body(scope, receive, send)

    async def _pass_on_with_body(self, scope: Message, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await read_body(receive)
        except TimeoutError:
            await refusal(408, f"the body did not come within {BODY_SECONDS:g} s: send it faster")(scope, receive, send)
            return
        if body is None:
            await refusal(413, f"the body is longer than {MAX_BODY:,} bytes: send less")(scope, receive, send)
        else:
            await self._app(scope, replay(body, receive), send)

    def _fault(self, scope: Message) -> tuple[int, str] | None:
        """Status and reason why a request may not come in; None if it may."""
        headers: dict[str, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1").lower(), []).append(value)
        host = [value.decode("latin-1") for value in headers.get("host", [])]
        if len(host) != 1 or (LOOPBACK.fullmatch(host[0]) is None and not self._keys.are_asked):
            return 403, "the host must be 127.0.0.1 or localhost"
        if any(origin.decode("latin-1") != f"{scope['scheme']}://{host[0]}" for origin in headers.get("origin", [])):
            return 403, "requests of other origins are not answered"
        if self._keys.are_asked and scope["path"] not in HEALTH and not self._is_allowed(headers.get("authorization", [])):
            return 401, "a key is needed: send the header `Authorization: Bearer KEY`"
        if scope["method"] not in WITHOUT_BODY:
            kinds = [value.decode("latin-1").partition(";")[0].strip().lower() for value in headers.get("content-type", [])]
            if kinds != ["application/json"]:
                return 415, "the content type must be application/json"
        return None

    def _is_allowed(self, authorization: Sequence[bytes]) -> bool:
        key = _key_in(authorization[0]) if len(authorization) == 1 else None
        return key is not None and self._keys.hold(key)


def refuse_open_doors() -> None:
    """Refuse what `refuse_open_door` does for every address that this process listens on."""
    for connection in psutil.Process().net_connections(kind="inet"):
        if connection.status == psutil.CONN_LISTEN:
            refuse_open_door(connection.laddr.ip)


def refuse_open_door(address: str) -> None:
    """Refuse to serve anybody but this machine, unless a key is asked for.

    Raises:
        ProsemillError: other machines reach the address and need no key, or it is none.
    """
    try:
        is_open = not ipaddress.ip_address(address).is_loopback
    except ValueError:
        raise ProsemillError(f"--host takes an IP address, not {address}: leave it at 127.0.0.1") from None
    if is_open and not Keys.read(os.environ).are_asked:
        raise ProsemillError(
            f"the service asks for no key, so it must not listen on {address}: leave --host at 127.0.0.1, or set {VARIABLE}"
        )


def _key_in(authorization: bytes) -> bytes | None:
    """The key that a request brings: by itself, or as the password of any user, as a browser sends it."""
    if found := BEARER.fullmatch(authorization):
        return found[1]
    if found := BASIC.fullmatch(authorization):
        with suppress(binascii.Error):
            return base64.b64decode(found[1], validate=True).partition(b":")[2]
    return None


async def read_body(receive: Receive) -> bytes | None:
    """A request's body; None if it is too long, or its client has gone."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_BODY or message["type"] == "http.disconnect":
            return None
        if not message.get("more_body", False):
            return bytes(body)


def replay(body: bytes, receive: Receive) -> Receive:
    """Give the application a body that has been read; after it, whatever else comes."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed
