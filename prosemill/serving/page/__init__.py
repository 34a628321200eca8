"""The page at `/ui`, for people: a prompt, sliders, and the answer as it is written.

    page = Page(lambda: app.state.desk)
    app.mount(PATH, page)
    page.begin()    # importing Gradio takes seconds, which the service does not wait for

Gradio draws it. Of Gradio's routes it has those that this page needs, and no others: not those that take files, give files, fetch from
elsewhere, or call functions by name. The keys are asked for in front of it, as for all routes (`guard`).
"""

import asyncio
import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prosemill.serving.desk import Desk
from prosemill.serving.errors import refusal

if TYPE_CHECKING:
    from gradio import Blocks

PATH = "/ui"

ROUTES = {
    "GET": re.compile(r"/|/config|/theme\.css|/(assets|static)/.+|/gradio_api/(queue/data|startup-events)"),
    "POST": re.compile(r"/gradio_api/(queue/join|cancel|reset)"),
}
"""What the page asks for, below `PATH`."""

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; frame-ancestors 'none'; form-action 'none'; base-uri 'self'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""The browser holds the page to it: it loads from nowhere else, and stands in no other page."""


class Page:
    """The page as an ASGI application. What asks before it is made waits."""

    def __init__(self, desk: Callable[[], Desk]) -> None:
        self._desk = desk
        self._making: Future[tuple[Blocks, ASGIApp]] | None = None
        self._is_started = False

    def begin(self) -> "Future[tuple[Blocks, ASGIApp]]":
        """Make the page, in a thread of its own."""
        if self._making is None:
            pool = ThreadPoolExecutor(1, thread_name_prefix="page")
            self._making = pool.submit(self._make)
            pool.shutdown(wait=False)
        return self._making

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on to Gradio, if the page needs its route."""
        route = ROUTES.get("GET" if scope["method"] == "HEAD" else scope["method"])
        if route is None or route.fullmatch(scope["path"].removeprefix(PATH)) is None:
            await refusal(404, "the page has no such route")(scope, receive, send)
            return
        blocks, app = await asyncio.wrap_future(self.begin())
        if not self._is_started:
            self._is_started = True
            blocks.run_startup_events()  # needs the event loop

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await app({**scope, "root_path": scope["root_path"].removesuffix(PATH)}, receive, send_with_headers)

    def _make(self) -> "tuple[Blocks, ASGIApp]":
        from prosemill.serving.page.blocks import make_blocks, serve_blocks

        blocks = make_blocks(self._desk)
        return blocks, serve_blocks(blocks, PATH)
