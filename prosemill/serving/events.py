"""Server-sent events (HTML standard, section 9.2): an answer that comes piece by piece, each as JSON."""

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send


def event(data: BaseModel | dict[str, Any] | str, name: str | None = None) -> str:
    """One event. JSON has no line breaks of its own, which would end it."""
    text = data if isinstance(data, str) else data.model_dump_json() if isinstance(data, BaseModel) else json.dumps(data)
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {text}\n\n"


class EventStream(StreamingResponse):
    """Sends events, and calls `close` however that ends: also if the client goes before the first."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], close: Callable[[], None]) -> None:
        super().__init__(events, headers={"Cache-Control": "no-store"})
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As an ASGI application."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()
