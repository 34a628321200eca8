"""Server-sent events (HTML standard, section 9.2): an answer that comes piece by piece, each as JSON."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from pydantic_core import to_json
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send


def event(data: BaseModel | dict[str, Any], name: str | None = None) -> bytes:
    """One event. JSON has no line breaks of its own, which would end it."""
    head = b"" if name is None else b"event: %s\n" % name.encode()
    return b"%sdata: %s\n\n" % (head, to_json(data, ensure_ascii=True))  # at every token, and `json` takes five times as long


class EventStream(StreamingResponse):
    """Sends events, and calls `close` however that ends: also if the client goes before the first, or has not read all after `seconds`."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], close: Callable[[], None], *, seconds: float) -> None:
        super().__init__(events, headers={"Cache-Control": "no-store"})
        self._close, self._seconds = close, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As an ASGI application."""
        try:
            # A client that reads a byte now and then would hold its place, and the version that writes for it, for ever.
            async with asyncio.timeout(self._seconds):
                await super().__call__(scope, receive, send)
        except (ClientDisconnect, TimeoutError):
            return
        finally:
            self._close()
