"""Where requests to the champion come in: admitted, held to their deadline, and dropped when their client goes.

with ExitStack() as stack:
    champion = stack.enter_context(desk.visit("The history of"))
    stream = await desk.enter(stack, champion.writer, "The history of", wanted, deadline=None)
    ((text, finished),) = await unless_gone(request, stream.texts())
"""

import asyncio
import math
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Protocol, TypeVar

from fastapi import Request
from fastapi.concurrency import run_in_threadpool

from prosemill.errors import first_line
from prosemill.generation.engine_thread import EngineThread
from prosemill.generation.sampling import Settings
from prosemill.generation.writer import Framed, Writer
from prosemill.serving.admission import Admission
from prosemill.serving.champion import Champion
from prosemill.serving.errors import EngineError, TooMuchError, UnavailableError, refused_by_engine
from prosemill.serving.log import log
from prosemill.serving.meters import Meters, ScoreOutcome
from prosemill.serving.settings import ServiceSettings
from prosemill.serving.stream import Stream

T = TypeVar("T")

MOST_TOKENS = 4096
"""Of a prompt or a text, where the model sets no bound: an encoder compares each of its tokens with each."""
READING_SECONDS = 10.0
"""That a client has after the deadline to read what was written by then."""


class GoneError(Exception):
    """The client has gone; nobody waits for an answer."""


class Wanted(Protocol):
    """What somebody asks for a prompt."""

    n: int
    """Answers."""

    def settings(self, num_prompt_tokens: int) -> Sequence[Settings]:
        """Of each answer. Raises `TooMuchError` if they leave nothing for one."""


class Desk:
    """The champion, and who is being served."""

    def __init__(self, champion: Champion, settings: ServiceSettings, meters: Meters) -> None:
        self.deadline, self.meters = settings.deadline, meters
        self.admission = Admission(max_requests=settings.max_requests, max_tokens=settings.max_tokens, note_rejection=meters.note_rejection)
        self._logs_prompts = settings.log_prompts
        self._champion = champion
        self._changes = threading.Condition()
        self._visits: Counter[Champion] = Counter()
        self._hurries = set[Callable[[float], None]]()
        self._end: float | None = None  # of the loop's clock, once the service is ending
        meters.note_version(champion.version)
        meters.watch_rows(self._num_running)

    @property
    def champion(self) -> Champion:
        """The version that newcomers are served by."""
        return self._champion

    def check_engine(self) -> None:
        """Raise `UnavailableError` if an engine of the champion's has ended: it does not come back."""
        if not all(writer.engine.is_alive for writer in self._champion.writers):
            raise UnavailableError("the engine has ended: start the service again")

    def check(self) -> None:
        """Raise `UnavailableError` if newcomers are not served."""
        if self._end is not None:
            raise UnavailableError("the service is ending: ask again when it is back")
        self.check_engine()

    def check_room(self) -> None:
        """Raise `BusyError` if there is no room for another request, however short."""
        self.admission.check()

    @property
    def num_visits(self) -> int:
        """Requests that are being served, from the reading of their prompts on."""
        with self._changes:
            return self._visits.total()

    def close(self, seconds: float) -> None:
        """Serve no newcomers any more, and have those that are being served end with what they have after so many seconds at most."""
        self._end = asyncio.get_running_loop().time() + seconds
        for hurry in self._hurries:
            hurry(seconds)

    @contextmanager
    def visit(self, text: str) -> Iterator[Champion]:
        """The champion, which stays open until the block ends, whoever takes its place meanwhile.

        Args:
            text: What it is asked to continue or to score; the log gets it, if that is wanted.

        Raises:
            UnavailableError: newcomers are not served.
        """
        self.check()
        if self._logs_prompts:
            log(text=text)
        with self._changes:
            champion = self._champion
            self._visits[champion] += 1
        try:
            yield champion
        finally:
            with self._changes:
                self._visits[champion] -= 1
                self._changes.notify_all()

    def swap(self, champion: Champion) -> threading.Thread:
        """Serve newcomers by another version, and have the one before closed when its last visitor has gone.

        Nobody waits for that: the next swap may be the way back from a version that turned out bad.

        Returns:
            The thread that closes it.
        """
        with self._changes:
            before, self._champion = self._champion, champion
            self.meters.note_version(champion.version)
        closing = threading.Thread(target=self._close_once_left, args=[before], name=f"closing version {before.version}", daemon=True)
        closing.start()
        return closing

    def _close_once_left(self, champion: Champion) -> None:
        with self._changes:
            while self._visits[champion]:
                self._changes.wait()
            del self._visits[champion]
        champion.close()

    async def enter(self, stack: ExitStack, writer: Writer, prompt: str, wanted: Wanted, *, deadline: float | None) -> Stream:
        """Have a prompt continued; what is not done when the stack is closed is dropped.

        Args:
            stack: Of who reads the answers.
            writer: Of a champion that is visited.
            prompt: The text.
            wanted: What is asked for it.
            deadline: Seconds, if they shall be fewer than the service's own.

        Raises:
            BusyError: there is no room.
            TooMuchError: the prompt is too long, or its answer would be, or they would be too many.
            EngineError: the engine has ended.
        """
        if wanted.n > self.admission.max_requests:
            raise TooMuchError(f"n is {wanted.n}, and there may be {self.admission.max_requests} answers at once: ask for fewer")
        take = stack.enter_context(self.admission.admit(wanted.n))
        tokens = await run_in_threadpool(writer.read, prompt)
        _check_length(len(tokens), writer.context)
        settings, seconds = wanted.settings(len(tokens)), min(deadline or self.deadline, self.deadline)
        take(sum(len(tokens) + each.max_new_tokens for each in settings))
        stream = Stream(writer.engine, tokens, settings, deadline=seconds, note=self.meters.note_end)
        stack.callback(stream.cancel)
        stack.enter_context(self._hurried_by(stream.hurry))
        return stream

    async def score(self, champion: Champion, text: str) -> tuple[Framed, float]:
        """A text as it is scored, and the sum of -ln p of it, in nats.

        Raises:
            ValueError: the tokenizer makes no tokens of the text.
            BusyError: there is no room.
            TooMuchError: the text is too long.
            EngineError: the engine could not score it.
            UnavailableError: it did not before the deadline.
        """
        with self.admission.admit() as take:
            framed = await run_in_threadpool(champion.writer.frame, text)
            num_tokens = len(framed.given or ()) + len(framed.tokens)
            if champion.writer.context is None and num_tokens > MOST_TOKENS:
                raise TooMuchError(f"the text is {num_tokens} tokens, and {MOST_TOKENS} are read at most: send a shorter one")
            take(num_tokens)
            found = await self._score(champion.writer.engine, framed, num_tokens)
        if isinstance(found, Exception):
            raise EngineError(f"the model could not score it: {first_line(found)}")
        return framed, found

    async def _score(self, engine: EngineThread, framed: Framed, num_tokens: int) -> float | Exception:
        """The sum of -ln p, or why there is none. Raises `UnavailableError` if there is none in time."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[float | Exception] = loop.create_future()

        def deliver(found: float | Exception) -> None:
            loop.call_soon_threadsafe(lambda: None if answer.done() else answer.set_result(found))

        with refused_by_engine():
            scoring = engine.score(framed.given, framed.tokens, framed.labels, deliver)
        begin, latest = loop.time(), asyncio.timeout(self.deadline)
        outcome: ScoreOutcome = "cancelled"

        def hurry(seconds: float) -> None:
            if not latest.expired():
                latest.reschedule(min(loop.time() + seconds, latest.when() or math.inf))

        try:
            async with latest:
                with self._hurried_by(hurry):
                    found = await answer
            outcome = "failed" if isinstance(found, Exception) else "scored"
            return found
        except TimeoutError:
            outcome = "deadline"
            raise UnavailableError("the text was not scored in time: send a shorter one, or come back later") from None
        finally:
            scoring.cancel()
            self.meters.note_score(num_tokens, loop.time() - begin, outcome)

    @contextmanager
    def _hurried_by(self, hurry: Callable[[float], None]) -> Iterator[None]:
        self._hurries.add(hurry)
        if self._end is not None:  # its prompt was being read when the end was told
            hurry(max(0.0, self._end - asyncio.get_running_loop().time()))
        try:
            yield
        finally:
            self._hurries.discard(hurry)

    def _num_running(self) -> int:
        """Texts that get a token at every step, those of a version that is leaving included."""
        with self._changes:
            champions = {self._champion, *self._visits}
        return sum(champion.num_running for champion in champions)


def _check_length(num_tokens: int, context: int | None) -> None:
    """Raise `TooMuchError` if a prompt is too long for any answer, whatever its length."""
    if context is None and num_tokens > MOST_TOKENS:
        raise TooMuchError(f"the prompt has {num_tokens} tokens, and {MOST_TOKENS} are read at most: shorten it")
    if context is not None and num_tokens >= context:
        raise TooMuchError(f"the prompt has {num_tokens} tokens, and prompt and answer together may have {context}: shorten it")


async def unless_gone(request: Request, answer: Awaitable[T]) -> T:
    """What is awaited, which ends with its client. Raises `GoneError` if the client goes before, and what is raised there."""
    answering, leaving = asyncio.ensure_future(answer), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise GoneError
        return answering.result()
    finally:
        answering.cancel()
        leaving.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
