"""The answers to one prompt, as the event loop sees them.

stream = Stream(engine, tokens, [settings], deadline=30.0, note=meters.note_end)
async for index, piece in stream:
    ...
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from prosemill.generation.engine_thread import End, EngineThread, Event, Request
from prosemill.generation.sampling import Settings
from prosemill.serving.errors import EngineError, refused_by_engine
from prosemill.serving.meters import Outcome

Finish = Literal["stop", "length", "deadline"]


@dataclass(frozen=True)
class Finished:
    """All of an answer has come."""

    reason: Finish
    end: End


class Stream:
    """Answers that end with their reader: whoever stops reading calls `cancel`. To be made and read in an event loop."""

    def __init__(
        self,
        engine: EngineThread,
        tokens: Sequence[int],
        settings: Sequence[Settings],
        *,
        deadline: float,
        note: Callable[[End, Outcome], None],
    ) -> None:
        """Have a prompt continued.

        Args:
            engine: Who writes.
            tokens: The prompt's.
            settings: Of each answer.
            deadline: Seconds after which they end with what they have, whether or not that is being read.
            note: Called with how each ended, by the engine's thread.

        Raises:
            TooMuchError: the model does not see so much.
            EngineError: the engine has ended.
        """
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()  # one for all: a task for each would cost time at every token
        self._is_late = False
        self._note = note
        self.ends = list[End]()
        """Of the answers that were read to their ends, those that failed included."""
        self._requests = list[Request]()
        try:
            with refused_by_engine():
                for index, each in enumerate(settings):
                    self._requests.append(engine.submit(tokens, each, partial(self._deliver, index)))
        except BaseException:
            self._drop()  # those before it, which nobody would read
            raise
        self._timer = self._loop.call_later(deadline, self._expire)

    def _deliver(self, index: int, event: Event) -> None:
        if isinstance(event, End):
            self._note(event, "deadline" if self._is_late and event.reason == "cancelled" else event.reason)
        self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

    def cancel(self) -> None:
        """Have them end at the next token."""
        self._timer.cancel()
        self._drop()

    def hurry(self, seconds: float) -> None:
        """Have them end with what they have after so many seconds, if they would not before."""
        latest = self._loop.time() + seconds
        if latest < self._timer.when() and not self._timer.cancelled():
            self._timer.cancel()
            self._timer = self._loop.call_at(latest, self._expire)

    def _expire(self) -> None:
        self._is_late = True
        self._drop()

    def _drop(self) -> None:
        for request in self._requests:
            request.cancel()

    async def __aiter__(self) -> AsyncIterator[tuple[int, str | Finished | EngineError]]:
        """Pieces of text as they come, each with its answer's index; the last of each answer is how it finished, or why it failed."""
        left = len(self._requests)
        while left:
            index, event = await self._events.get()
            if isinstance(event, End):
                left -= 1
                self.ends.append(event)
                yield index, self._told(event)
            else:
                yield index, event

    def _told(self, end: End) -> Finished | EngineError:
        if end.reason == "failed" or (end.reason == "cancelled" and not self._is_late):
            return EngineError(f"the model could not answer: {end.error or 'the engine has ended'}")
        return Finished("deadline" if end.reason == "cancelled" else end.reason, end)

    async def texts(self) -> list[tuple[str, Finished]]:
        """All answers. Raises `EngineError` if one failed."""
        pieces: list[list[str]] = [[] for _ in self._requests]
        finished: dict[int, Finished] = {}
        async for index, piece in self:
            if isinstance(piece, EngineError):
                raise piece
            if isinstance(piece, Finished):
                finished[index] = piece
            else:
                pieces[index].append(piece)
        return [("".join(each), finished[index]) for index, each in enumerate(pieces)]
