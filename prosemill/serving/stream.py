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
            deadline: Seconds after which it ends with what it has, whether or not that is being read.
            note: Called with how it ended, by the engine's thread.

        Raises:
            TooLongError: the model does not see so much.
            EngineError: the engine has ended.
        """
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._is_late = False
        self._note = note
        self._end: End | None = None
        with refused_by_engine():
            self._request = engine.submit(tokens, settings, self._deliver)
        self._timer = self._loop.call_later(deadline, self._expire)

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
        self._timer.cancel()
        self._request.cancel()

    def hurry(self, seconds: float) -> None:
        """Have it end with what it has after so many seconds, if it would not before."""
        latest = self._loop.time() + seconds
        if latest < self._timer.when() and not self._timer.cancelled():
            self._timer.cancel()
            self._timer = self._loop.call_at(latest, self._expire)

    def _expire(self) -> None:
        self._is_late = True
        self._request.cancel()

    async def __aiter__(self) -> AsyncIterator[str]:
        """Its text as it comes. Raises `EngineError` if it failed."""
        while self._end is None:
            event = await self._events.get()
            if isinstance(event, End):
                self._end = event
            else:
                yield event
        if self._end.reason == "failed" or (self._end.reason == "cancelled" and not self._is_late):
            raise EngineError(f"the model could not answer: {self._end.error or 'the engine has ended'}")

    async def text(self) -> str:
        """All of its text. Raises `EngineError` if it failed."""
        return "".join([piece async for piece in self])


async def together(streams: Sequence[Stream]) -> AsyncIterator[tuple[int, str | EngineError | None]]:
    """The pieces of several streams as they come, each with its stream's number; after a stream's last comes None, or why it failed."""
    if len(streams) == 1:  # as a rule, and then a task and a queue would be in the way of every piece
        async for piece in _pieces(streams[0]):
            yield 0, piece
        return
    pieces: asyncio.Queue[tuple[int, str | EngineError | None]] = asyncio.Queue()

    async def pass_on(number: int, stream: Stream) -> None:
        async for piece in _pieces(stream):
            pieces.put_nowait((number, piece))

    tasks = [asyncio.create_task(pass_on(number, stream)) for number, stream in enumerate(streams)]
    try:
        left = len(streams)
        while left:
            number, piece = await pieces.get()
            yield number, piece
            left -= not isinstance(piece, str)
    finally:
        for task in tasks:
            task.cancel()


async def _pieces(stream: Stream) -> AsyncIterator[str | EngineError | None]:
    last = None
    try:
        async for piece in stream:
            yield piece
    except EngineError as error:
        last = error
    yield last
