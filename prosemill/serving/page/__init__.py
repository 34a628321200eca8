"""The page at `/ui`, for people: a prompt, sliders, and the answer as it is written.

    page = Page(lambda: app.state.desk)
    app.mount(PATH, page)
    page.begin()    # importing Gradio takes seconds, which the service does not wait for

Gradio draws it. Of Gradio's routes it has those that this page needs, and no others: not those that take files, give files, fetch from
elsewhere, or call functions by name. What these get is read before Gradio reads it (`asked`), as it takes files and addresses in any value.
The keys are asked for in front of the page, as for all routes (`guard`).
"""

import asyncio
import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Receive, Scope, Send

from prosemill.serving.desk import Desk
from prosemill.serving.errors import refusal
from prosemill.serving.page.asked import POSTS
from prosemill.serving.page.passage import DATA, NO_ROUTE, Passage

if TYPE_CHECKING:
    from gradio import Blocks

PATH = "/ui"

GETS = re.compile(rf"/|/config|/theme\.css|/(assets|static)/[\w./-]{{1,200}}|{DATA}", re.ASCII)
"""What the page asks for, below `PATH`; what it sends is in `POSTS`."""


class Page:
    """The page as an ASGI application. What asks before it is made waits."""

    def __init__(self, desk: Callable[[], Desk]) -> None:
        self._desk = desk
        self._making: Future[tuple[Blocks, ASGIApp]] | None = None
        self._passage: Passage | None = None

    def begin(self) -> "Future[tuple[Blocks, ASGIApp]]":
        """Make the page, in a thread of its own."""
        if self._making is None:
            pool = ThreadPoolExecutor(1, thread_name_prefix="page")
            self._making = pool.submit(self._make)
            pool.shutdown(wait=False)
        return self._making

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on to Gradio, if the page needs its route."""
        route, method = scope["path"].removeprefix(PATH), scope["method"]
        if not (route in POSTS if method == "POST" else method in ("GET", "HEAD") and GETS.fullmatch(route)):
            await refusal(404, NO_ROUTE)(scope, receive, send)
            return
        made = await asyncio.wrap_future(self.begin())
        if self._passage is None:
            self._passage = Passage(*made, PATH)
        await self._passage(scope, receive, send)

    def _make(self) -> "tuple[Blocks, ASGIApp]":
        from prosemill.serving.page.blocks import make_blocks, serve_blocks

        blocks = make_blocks(self._desk)
        return blocks, serve_blocks(blocks, PATH)
