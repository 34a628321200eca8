"""What goes from a browser to Gradio and back: of a request what the page needs, and of an answer that says no the service's one shape."""

from contextlib import ExitStack
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from pydantic import ValidationError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prosemill.serving.errors import BROKEN, fault_line, refusal
from prosemill.serving.guard import read_body, replay
from prosemill.serving.page.asked import OfSession, read
from prosemill.serving.page.sessions import Sessions, is_behind

if TYPE_CHECKING:
    from gradio import Blocks

DATA = "/gradio_api/queue/data"
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; frame-ancestors 'none'; form-action 'none'; base-uri 'self'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""The browser holds the page to it: it loads from nowhere else, and stands in no other page."""
NO_ROUTE = "the page has no such route"
WORDS = {404: NO_ROUTE, 500: BROKEN, 503: "too many ask the page at once: ask again"}


class Passage:
    """An ASGI application in front of Gradio's."""

    def __init__(self, blocks: "Blocks", gradio: ASGIApp, path: str) -> None:
        """Begin to serve a page whose routes stand below a path; the event loop must run."""
        self._blocks, self._gradio, self._path = blocks, gradio, path
        self._sessions = Sessions(blocks)
        self._num_values = {number: len(function.inputs) for number, function in blocks.fns.items() if function.fn is not None}
        blocks.run_startup_events()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        route = scope["path"].removeprefix(self._path)
        given = {**scope, "root_path": scope["root_path"].removesuffix(self._path), "query_string": b""}
        if scope["method"] == "HEAD":
            given["method"] = "GET"  # which Gradio knows everywhere; the server leaves the body out
        with ExitStack() as stack:
            try:
                if scope["method"] == "POST":
                    receive = replay(self._read(route, await read_body(receive) or b""), receive)
                elif route == DATA:
                    session = OfSession.model_validate(dict(parse_qsl(scope["query_string"].decode("latin-1")))).session_hash
                    if not self._sessions.know(session):
                        raise HTTPException(404, "there is nothing to tell to this session")
                    stack.enter_context(self._sessions.listening(session))
                    given["query_string"] = f"session_hash={session}".encode()
            except ValidationError as error:
                await _say_what_is_wrong(error)(scope, receive, send)
            except HTTPException as error:
                await refusal(error.status_code, error.detail)(scope, receive, send)
            else:
                await self._gradio(given, receive, _in_our_shape(scope, receive, send))

    def _read(self, route: str, body: bytes) -> bytes:
        """What Gradio gets of a body."""
        asked = read(route, body, self._num_values)
        if isinstance(asked, OfSession):
            if is_behind(self._blocks, asked.session_hash):
                raise HTTPException(400, "this session has much to read: read it first")
            self._sessions.expect(asked.session_hash)
        return asked.model_dump_json().encode()


def _say_what_is_wrong(error: ValidationError) -> Response:
    first = error.errors()[0]
    return refusal(400, fault_line(".".join(str(part) for part in first["loc"][:2]), first["msg"]))  # behind it, a type's name


def _in_our_shape(scope: Scope, receive: Receive, send: Send) -> Send:
    """Send an answer with the page's headers, and say in the service's own shape that there is none."""
    is_refused = False

    async def send_shaped(message: Message) -> None:
        nonlocal is_refused
        if message["type"] == "http.response.start":
            status = message["status"]
            if status >= 400:
                is_refused = True
                await refusal(status, WORDS.get(status, "the page cannot answer this"))(scope, receive, send)
            else:
                MutableHeaders(scope=message).update(HEADERS)
        if not is_refused:
            await send(message)

    return send_shaped
