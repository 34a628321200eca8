"""An HTTP client that takes little of the processor: on two cores, what it takes is taken from the service that it measures.

async with Client("http://127.0.0.1:3000") as client:
    answer = await client.ask("POST", "/v1/completions", {"model": "prosemill", "prompt": "The"})
    answer.status, answer.body, answer.arrivals
"""

import asyncio
import json
import os
import time
from dataclasses import dataclass, field
from typing import Any, Self, cast
from urllib.parse import urlsplit

import httptools


@dataclass
class Answer:
    """What came."""

    status: int = 0
    body: bytearray = field(default_factory=bytearray)
    arrivals: list[float] = field(default_factory=list)
    """When each piece of the body came, by `time.perf_counter`."""


class Connection(asyncio.Protocol):
    """A connection, which carries one request after the other. httptools calls the methods that begin with `on`."""

    def __init__(self) -> None:
        self.is_open = True
        self._asked: asyncio.Future[Answer] | None = None

    async def ask(self, request: bytes) -> Answer:
        """Send a request and read the answer to its end. Raises `ConnectionError` if the connection ends before."""
        self._parser, self._answer = httptools.HttpResponseParser(self), Answer()
        self._asked = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            return await self._asked
        except asyncio.CancelledError:
            self.close()
            raise

    def close(self) -> None:
        """Take no more requests."""
        self.is_open = False
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As a protocol of asyncio's."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """As a protocol of asyncio's."""
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """As a protocol of asyncio's."""
        self.is_open = False
        if self._asked is not None and not self._asked.done():
            self._asked.set_exception(ConnectionResetError(f"the connection has ended: {exc or 'the service has closed it'}"))

    def on_body(self, body: bytes) -> None:
        """A piece of the answer."""
        self._answer.arrivals.append(time.perf_counter())
        self._answer.body += body

    def on_message_complete(self) -> None:
        """All of the answer has come."""
        self.is_open &= self._parser.should_keep_alive()
        self._answer.status = self._parser.get_status_code()
        if self._asked is not None and not self._asked.done():
            self._asked.set_result(self._answer)


class Client:
    """Opens as many connections to a service as there are requests at once, and keeps them. It waits as long as the service does."""

    def __init__(self, url: str) -> None:
        """For a service at an address; its key, if it asks for one, is `PROSEMILL_API_KEY`."""
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname is None:  # the key would go out for all to read
            raise SystemExit(f"the address must begin with http://, which {url} does not")
        self._host, self._port = parts.hostname, parts.port or 80
        key = os.environ.get("PROSEMILL_API_KEY")
        self._headers = f"Host: {parts.netloc}\r\n" + (f"Authorization: Bearer {key}\r\n" if key else "")
        self._idle = list[Connection]()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in self._idle:
            connection.close()

    async def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Answer:
        """Send a request and read the answer to its end. Raises `OSError` if there is no connection, or it ends before."""
        content = b"" if body is None else json.dumps(body).encode()
        kind = f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n" if content else ""
        connection = await self._connection()
        answer = await connection.ask(f"{method} {path} HTTP/1.1\r\n{self._headers}{kind}\r\n".encode() + content)
        if connection.is_open:
            self._idle.append(connection)
        return answer

    async def _connection(self) -> Connection:
        while self._idle:
            if (connection := self._idle.pop()).is_open:
                return connection
        return (await asyncio.get_running_loop().create_connection(Connection, self._host, self._port))[1]
