"""A request to the engine, as the event loop sees it.

stream = Stream(engine, tokens, settings, deadline=30.0)
async for piece in stream:
    ...
stream.end.reason
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Literal

from prosemill.generation.engine import End, Engine, Event
from prosemill.generation.sampling import Settings
from prosemill.serving.errors import EngineError, refused_by_engine
from prosemill.serving.meters import Outcome

Finish = Literal["stop", "length", "deadline"]


class Stream:
    """A request that ends with its reader: whoever stops reading calls `cancel`. To be made and read in an event loop."""

    def __init__(
        self, engine: Engine, tokens: Sequence[int], settings: Settings, *, deadline: float, note: Callable[[End, Outcome], None]
    ) -> None:
        """Have a prompt continued.

        Args:
            engine: Who writes.
            tokens: The prompt's.
            settings: Of the answer.
            deadline: Seconds after which it ends with what it has.
            note: Called with how it ended, by the engine's thread.

        Raises:
            TooLongError: the model does not see so much.
            EngineError: the engine has ended.
        """
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._latest = self._loop.time() + deadline
        self._is_late = False
        self._note = note
        self._end: End | None = None
        with refused_by_engine():
            self._request = engine.submit(tokens, settings, self._deliver)

    def _deliver(self, event: Event) -> None:
        if isinstance(event, End):
            self._note(event, "deadline" if self._is_late and event.reason == "cancelled" else event.reason)
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    @property
    def end(self) -> End:
        """How it ended, once all is read."""
        assert self._end is not None
        return self._end

    @property
    def finish(self) -> Finish:
        """Why it ended, for clients."""
        return "deadline" if self.end.reason == "cancelled" else "length" if self.end.reason == "length" else "stop"

    def cancel(self) -> None:
        """Have it end at the next token."""
        self._request.cancel()

    async def __aiter__(self) -> AsyncIterator[str]:
        """Its text as it comes. Raises `EngineError` if it failed."""
        while self._end is None:
            event = await self._next()
            if isinstance(event, End):
                self._end = event
            else:
                yield event
        if self._end.reason == "failed" or (self._end.reason == "cancelled" and not self._is_late):
            raise EngineError(f"the model could not answer: {self._end.error or 'the engine has ended'}")

    async def text(self) -> str:
        """All of its text. Raises `EngineError` if it failed."""
        return "".join([piece async for piece in self])

    async def _next(self) -> Event:
        """The next event; after the deadline the engine is told to end, and what it has sent by then still comes."""
        if not self._is_late:
            try:
                async with asyncio.timeout_at(self._latest):
                    return await self._events.get()
            except TimeoutError:
                self._is_late = True
                self.cancel()
        return await self._events.get()
