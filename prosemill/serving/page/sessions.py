"""Who listens to what Gradio tells, which by itself would write for those who do not, and keep it for them.

sessions.expect("a2b3")             # it has called something
with sessions.listening("a2b3"):
    ...
"""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradio import Blocks

SECONDS = 10.0
"""That a session is kept while nobody listens to it; a browser begins as soon as its call is taken."""
MOST_UNREAD = 50
"""Messages that wait for a session whose client does not read; an answer makes ten a second."""


class Sessions:
    """The sessions of a page. What belongs to one that is not listened to is ended and forgotten."""

    def __init__(self, blocks: "Blocks") -> None:
        self._blocks, self._queue = blocks, blocks._queue
        self._listeners = Counter[str]()
        self._leaving: dict[str, asyncio.Task[None]] = {}

    def know(self, session: str) -> bool:
        """Whether there may be something to tell to a session."""
        return session in self._queue.pending_messages_per_session

    def expect(self, session: str) -> None:
        """Keep a session for some time, in which somebody must begin to listen."""
        if before := self._leaving.pop(session, None):
            before.cancel()
        self._leaving[session] = asyncio.create_task(self._leave(session))

    @contextmanager
    def listening(self, session: str) -> Iterator[None]:
        """Keep a session until the block ends, and some time longer."""
        self._listeners[session] += 1
        try:
            yield
        finally:
            self._listeners[session] -= 1
            self.expect(session)

    async def _leave(self, session: str) -> None:
        await asyncio.sleep(SECONDS)
        if not self._listeners[session]:
            await self._queue.clean_events(session_hash=session)
            states = self._blocks.state_holder
            kept = (
                self._queue.pending_messages_per_session,
                self._queue.pending_event_ids_session,
                states.session_data,
                states.time_last_used,
            )
            for each in (*kept, self._listeners):
                each.pop(session, None)
        del self._leaving[session]


def is_behind(blocks: "Blocks", session: str) -> bool:
    """Whether a session's client does not read what it is told."""
    messages = blocks._queue.pending_messages_per_session.get(session)
    return messages is not None and messages.qsize() > MOST_UNREAD
