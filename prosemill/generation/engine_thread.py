"""What an engine is to those who ask it: a thread to which requests come at any time, and which hands each its text.

    answer = engine.answer(tokens, Settings(temperature=0.8, seed=1))
    for piece in answer:            # text, as it comes
        print(piece, end="")
    print(answer.end)               # why it ended, and how many tokens it took

How tokens are made of requests is told by `Engine` (engine.py), which is our own, and by `VllmEngine` (on_vllm.py).
"""

import math
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, Self

from transformers import PreTrainedTokenizerFast

from prosemill.errors import first_line
from prosemill.generation.sampling import Settings
from prosemill.generation.text import AnswerText

Reason = Literal["stop", "length", "cancelled", "failed"]
NO_NUMBERS = "what it predicts is no finite numbers"
"""What is wrong with a model whose logits are NaN."""


@dataclass(frozen=True, kw_only=True)
class End:
    """How an answer ended."""

    reason: Reason
    """`stop` at a stop text or where the model ends its text, `length` after `max_new_tokens`."""
    num_prompt_tokens: int
    num_new_tokens: int
    queue_seconds: float
    """From the request to the first look at its prompt."""
    first_token_seconds: float | None
    """From the request to its first token."""
    seconds: float
    """From the request to its end."""
    error: str = ""


Event = str | End
"""A piece of the answer's text, or its end."""


@dataclass(eq=False)
class Request:
    """A request on its way. `deliver` is called by the engine's thread with every event, and must return at once."""

    tokens: list[int]
    settings: Settings
    deliver: Callable[[Event], None]
    text: AnswerText
    is_cancelled: bool = False
    """May be set at any time, from any thread: the next token is the last."""
    new_tokens: list[int] = field(default_factory=list)
    created: float = field(default_factory=time.monotonic)
    begun: float | None = None
    first: float | None = None
    error: str = ""

    def begin(self) -> None:
        """Its prompt is being looked at."""
        self.begun = self.begun or time.monotonic()

    def cancel(self) -> None:
        """Have it end at the next token."""
        self.is_cancelled = True


@dataclass(eq=False)
class Scoring:
    """A text that is to be scored, on its way. `deliver` is called by the engine's thread, with the sum or with why there is none."""

    given: Sequence[int] | None
    """What an encoder reads; None for a model that has none."""
    tokens: Sequence[int]
    labels: Sequence[int]
    """What the logits after each token predict, as `Decoder.nll` takes them."""
    deliver: Callable[[float | Exception], None]
    is_cancelled: bool = False
    num_read: int = 0
    nll: list[float] = field(default_factory=list)

    def cancel(self) -> None:
        """Have it end at the next piece."""
        self.is_cancelled = True

    def tell(self) -> None:
        """Deliver the sum."""
        found = math.fsum(self.nll)
        with suppress(Exception):  # a receiver that is gone
            self.deliver(found if math.isfinite(found) else ArithmeticError(NO_NUMBERS))


class Answer:
    """A request's text for one thread that waits for it."""

    def __init__(self, submit: Callable[[Callable[[Event], None]], Request]) -> None:
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._request = submit(self._events.put)
        self.end: End | None = None
        """How it ended; None until the last piece was taken."""

    def __iter__(self) -> Iterator[str]:
        while self.end is None:
            event = self._events.get()
            if isinstance(event, End):
                self.end = event
            else:
                yield event

    def cancel(self) -> None:
        """Have it end at the next token."""
        self._request.cancel()


class EngineThread(ABC):
    """The thread that writes. To be used as a context; its end cancels what is still being written."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, *, stops: Sequence[int], context: int | None, is_encoded: bool = False) -> None:
        """Prepare the thread, which begins with the context.

        Args:
            tokenizer: The model's.
            stops: Tokens that end an answer.
            context: Tokens that the model sees at most; None where its architecture sets no bound.
            is_encoded: Whether an encoder reads the prompts.
        """
        self._tokenizer, self._stops, self._context, self._is_encoded = tokenizer, frozenset(stops), context, is_encoded
        self._arrivals: deque[Request | Scoring] = deque()
        self._waiting: deque[Request | Scoring] = deque()
        self._wakes = threading.Condition()
        self._is_closed = False
        self.num_steps = 0
        """Steps in which all running requests got a token."""
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._wakes:
            self._is_closed = True
            self._wakes.notify()
        self._thread.join()

    @property
    def num_running(self) -> int:
        """Requests that get a token at every step."""
        return sum(isinstance(each, Request) for each in self._under_way())

    @property
    def is_alive(self) -> bool:
        """Whether the thread works."""
        return self._thread.is_alive()

    def answer(self, tokens: Sequence[int], settings: Settings) -> Answer:
        """`submit` for a thread that waits."""
        return Answer(partial(self.submit, tokens, settings))

    def submit(self, tokens: Sequence[int], settings: Settings, deliver: Callable[[Event], None]) -> Request:
        """Have a prompt continued.

        Args:
            tokens: What the family's `prompt` makes of it.
            settings: How.
            deliver: Called with every piece of text and at last with the `End`.

        Raises:
            ValueError: prompt and new tokens are more than the model sees.
            RuntimeError: the engine has ended.
        """
        num_given, num_new = 1 if self._is_encoded else len(tokens), settings.max_new_tokens
        if self._context is not None and num_given + num_new > self._context:
            raise ValueError(
                f"a prompt of {num_given} tokens and {num_new} new ones are {num_given + num_new} tokens, and the model sees "
                f"{self._context} at most: ask for fewer new ones, or shorten the prompt"
            )
        text = AnswerText(self._tokenizer, [] if self._is_encoded else list(tokens), settings.stop)
        request = self._make_request(list(tokens), settings, deliver, text)
        self._arrive(request)
        return request

    def score(
        self, given: Sequence[int] | None, tokens: Sequence[int], labels: Sequence[int], deliver: Callable[[float | Exception], None]
    ) -> Scoring:
        """Have a text scored: the sum of -ln p of its labels, in nats.

        Args:
            given: What an encoder reads; None for a model that has none.
            tokens: What the model reads then.
            labels: What the logits after each token predict, as `Decoder.nll` takes them.
            deliver: Called with the sum, or with why there is none.

        Raises:
            ValueError: the text is more than the model sees.
            RuntimeError: the engine has ended.
        """
        if self._context is not None and len(tokens) > self._context:
            raise ValueError(f"the text is {len(tokens)} tokens, and the model sees {self._context} at most: send a shorter one")
        scoring = Scoring(given, tokens, labels, deliver)
        self._arrive(scoring)
        return scoring

    def _arrive(self, request: Request | Scoring) -> None:
        with self._wakes:
            if self._is_closed:
                raise RuntimeError("the engine has ended")
            self._arrivals.append(request)
            self._wakes.notify()

    def _make_request(self, tokens: list[int], settings: Settings, deliver: Callable[[Event], None], text: AnswerText) -> Request:
        """A request, with whatever the engine remembers of one."""
        return Request(tokens, settings, deliver, text)

    @abstractmethod
    def _under_way(self) -> Sequence[Request | Scoring]:
        """What has been taken out of `_waiting` and has not ended."""

    @abstractmethod
    def _work(self) -> None:
        """End what is under way and cancelled, begin with some of what waits, and have what is under way get a token."""

    def _run(self) -> None:
        reason: Reason = "failed"
        try:
            while self._has_work():
                self._drop_cancelled()
                self._work()
            reason = "cancelled"
        finally:
            with self._wakes:
                self._is_closed = True
            for request in (*self._arrivals, *self._waiting, *self._under_way()):
                self._turn_away(request, reason)

    def _has_work(self) -> bool:
        """Wait for requests; whether there are any and the engine shall go on."""
        with self._wakes:
            while not (self._arrivals or self._waiting or self._under_way() or self._is_closed):
                self._wakes.wait()
            self._waiting += self._arrivals
            self._arrivals.clear()
            return not self._is_closed

    def _drop_cancelled(self) -> None:
        """End what waits and is cancelled."""
        for waiting in [waiting for waiting in self._waiting if waiting.is_cancelled]:
            self._waiting.remove(waiting)
            self._turn_away(waiting, "cancelled")

    def _show(self, request: Request) -> Reason | None:
        """Hand on what a request's last token adds to its text; why it ends, if it does."""
        token = request.new_tokens[-1]
        if request.first is None:
            request.first = time.monotonic()
        if token in self._stops:
            return "stop"
        if piece := request.text.add(token):
            request.deliver(piece)
        if request.text.is_stopped:
            return "stop"
        return "length" if len(request.new_tokens) == request.settings.max_new_tokens else None

    def _turn_away(self, request: Request | Scoring, reason: Reason, error: Exception | None = None) -> None:
        """End what does not run, or runs no more."""
        if isinstance(request, Request):
            request.error = first_line(error) if error else ""
            self._end(request, reason)
            return
        with suppress(Exception):  # a receiver that is gone
            request.deliver(error or RuntimeError("the engine has ended"))

    def _end(self, request: Request, reason: Reason) -> None:
        if reason in ("stop", "length") and (rest := request.text.finish()):
            try:
                request.deliver(rest)
            except Exception as error:  # noqa: BLE001 - a request that fails fails alone
                reason, request.error = "failed", first_line(error)
        now = time.monotonic()
        end = End(
            reason=reason,
            num_prompt_tokens=len(request.tokens),
            num_new_tokens=len(request.new_tokens),
            queue_seconds=(request.begun or now) - request.created,
            first_token_seconds=None if request.first is None else request.first - request.created,
            seconds=now - request.created,
            error=request.error,
        )
        with suppress(Exception):  # a receiver that is gone
            request.deliver(end)
