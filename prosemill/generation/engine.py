"""Continuous batching: one thread owns the model, and requests join and leave what it writes at every token.

    with Engine(decoder, tokenizer, stops=[0], context=2048) as engine:
        answer = engine.answer(tokens, Settings(temperature=0.8, seed=1))
        for piece in answer:            # text, as it comes
            print(piece, end="")
        print(answer.end)               # why it ended, and how many tokens it took

What a request gets depends on its prompt and its settings alone, not on who else is there (`decoder`), nor on when it came. Prompts are
read between the steps in which all others get their next token: long ones in pieces of `CHUNK` tokens, short ones together.
"""

import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Literal, Self

import torch
from transformers import PreTrainedTokenizerFast

from prosemill.errors import first_line
from prosemill.generation.attention import bucket
from prosemill.generation.decoder import CHUNK, Decoder
from prosemill.generation.sampling import Draws, Settings, choose
from prosemill.generation.text import AnswerText

NUM_SPARE = 2
"""Rows of the decoder in which nobody gets tokens: one to read a prompt in, one through which two rows change places."""

Reason = Literal["stop", "length", "cancelled", "failed"]


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
    draws: Draws
    is_cancelled: bool = False
    """May be set at any time, from any thread: the next token is the last."""
    num_read: int = 0
    logits: torch.Tensor | None = None
    """After the last token that was read of the prompt, [1, vocabulary], until the first new token is chosen."""
    new_tokens: list[int] = field(default_factory=list)
    seen: torch.Tensor | None = None
    """Whether the text holds a token, [vocabulary]; where a repetition penalty asks for it."""
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


class Engine:
    """The thread that writes. To be used as a context; its end cancels what is still being written."""

    def __init__(self, decoder: Decoder, tokenizer: PreTrainedTokenizerFast, *, stops: Sequence[int], context: int | None) -> None:
        self._decoder, self._tokenizer, self._stops, self._context = decoder, tokenizer, frozenset(stops), context
        assert decoder.num_rows > NUM_SPARE
        self._capacity = decoder.num_rows - NUM_SPARE
        self._reading, self._swapping = self._capacity, self._capacity + 1
        self._arrivals: deque[Request | Scoring] = deque()
        self._waiting: deque[Request | Scoring] = deque()
        self._running: list[Request] = []
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
        return len(self._running)

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
        is_read_by_encoder = self._decoder.is_encoded
        num_needed = (1 if is_read_by_encoder else len(tokens)) + settings.max_new_tokens
        if self._context is not None and num_needed > self._context:
            raise ValueError(f"prompt and max_new_tokens are {num_needed} tokens, and the model sees {self._context} at most")
        given = [] if is_read_by_encoder else list(tokens)
        request = Request(list(tokens), settings, deliver, AnswerText(self._tokenizer, given, settings.stop), Draws(settings))
        if settings.repetition_penalty != 1:
            request.seen = torch.zeros(self._decoder.vocabulary_size, dtype=torch.bool)
            request.seen[given or [self._decoder.start]] = True
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
            raise ValueError(f"the text is {len(tokens)} tokens, and the model sees {self._context} at most")
        scoring = Scoring(given, tokens, labels, deliver)
        self._arrive(scoring)
        return scoring

    def _arrive(self, request: Request | Scoring) -> None:
        with self._wakes:
            if self._is_closed:
                raise RuntimeError("the engine has ended")
            self._arrivals.append(request)
            self._wakes.notify()

    def _run(self) -> None:
        reason: Reason = "failed"
        try:
            while self._has_work():
                self._drop_cancelled()
                self._read_prompts()
                if self._running:
                    self._step()
            reason = "cancelled"
        finally:
            with self._wakes:
                self._is_closed = True
            for request in (*self._arrivals, *self._waiting, *self._running):
                self._turn_away(request, reason)

    def _has_work(self) -> bool:
        """Wait for requests; whether there are any and the engine shall go on."""
        with self._wakes:
            while not (self._arrivals or self._waiting or self._running or self._is_closed):
                self._wakes.wait()
            self._waiting += self._arrivals
            self._arrivals.clear()
            return not self._is_closed

    def _drop_cancelled(self) -> None:
        for request in [request for request in self._running if request.is_cancelled]:
            self._leave(request, "cancelled")
        for waiting in [waiting for waiting in self._waiting if waiting.is_cancelled]:
            self._waiting.remove(waiting)
            self._turn_away(waiting, "cancelled")

    def _read_prompts(self) -> None:
        """Read about `CHUNK` tokens of what waits, while there are rows for it."""
        left, reads_texts = CHUNK, self._decoder.reads_texts
        while left > 0 and self._waiting and len(self._running) < self._capacity:
            prompts = self._whole_prompts(left) if reads_texts else []
            if prompts and (reads_texts := self._read_texts(prompts)):
                left -= sum(request.num_read for request in prompts)
            else:
                left -= self._read_first()

    def _whole_prompts(self, left: int) -> list[Request]:
        """Those that wait first, as far as they can be read together: about `left` tokens, and a row for each."""
        found = list[Request]()
        for request in islice(self._waiting, self._capacity - len(self._running)):
            if left <= 0 or not isinstance(request, Request) or request.num_read > 0 or len(request.tokens) > CHUNK:
                break
            found.append(request)
            left -= len(request.tokens)
        return found

    def _read_texts(self, requests: Sequence[Request]) -> bool:
        """Read whole prompts together; whether that went well."""
        for request in requests:
            request.begin()
        try:
            logits = self._decoder.read_texts(len(self._running), [request.tokens for request in requests])
        except Exception:  # noqa: BLE001 - whose fault it is will show when each is read by itself
            return False
        for request in requests:
            self._waiting.popleft()
            request.num_read = len(request.tokens)
        self._join(requests, logits)
        return True

    def _read_first(self) -> int:
        """Read a piece of what waits first; its tokens."""
        request = self._waiting[0]
        try:
            num_read, is_read = self._score(request) if isinstance(request, Scoring) else self._read(request)
        except Exception as error:  # noqa: BLE001 - a request that fails fails alone
            self._waiting.popleft()
            self._turn_away(request, "failed", error)
            return 0
        if is_read:
            self._waiting.popleft()
            if isinstance(request, Request):
                self._join_from_reading(request)
        return num_read

    def _read(self, request: Request) -> tuple[int, bool]:
        """Read a piece of a prompt; its tokens, and whether it was the last."""
        request.begin()
        if self._decoder.is_encoded:
            assert self._decoder.start is not None
            self._decoder.encode(self._reading, request.tokens)
            request.logits = self._decoder.read(self._reading, [self._decoder.start], begin=0)
            request.num_read = 1
            return len(request.tokens), True
        piece = request.tokens[request.num_read : request.num_read + CHUNK]
        request.logits = self._decoder.read(self._reading, piece, begin=request.num_read)
        request.num_read += len(piece)
        return len(piece), request.num_read == len(request.tokens)

    def _score(self, scoring: Scoring) -> tuple[int, bool]:
        """Score a piece of a text; its tokens, and whether it was the last."""
        num_given = 0
        if scoring.given is not None and scoring.num_read == 0:
            self._decoder.encode(self._reading, scoring.given)
            num_given = len(scoring.given)
        begin, end = scoring.num_read, scoring.num_read + CHUNK
        tokens = scoring.tokens[begin:end]
        scoring.nll.append(self._decoder.nll(self._reading, tokens, scoring.labels[begin:end], begin=begin))
        scoring.num_read += len(tokens)
        is_read = scoring.num_read == len(scoring.tokens)
        if is_read:
            with suppress(Exception):  # a receiver that is gone
                scoring.deliver(math.fsum(scoring.nll))
        return num_given + len(tokens), is_read

    def _join_from_reading(self, request: Request) -> None:
        logits, request.logits = request.logits, None
        assert logits is not None
        self._decoder.move(self._reading, len(self._running), request.num_read)
        self._join([request], logits)

    def _join(self, requests: Sequence[Request], logits: torch.Tensor) -> None:
        """Take requests among those that run, whose prompts stand in the rows behind theirs."""
        self._running += requests
        self._take(requests, logits)
        self._arrange()

    def _step(self) -> None:
        positions = [self._position(request) for request in self._running]
        logits = self._decoder.step([request.new_tokens[-1] for request in self._running], positions)
        self.num_steps += 1
        self._take(list(self._running), logits)
        self._arrange()

    def _position(self, request: Request) -> int:
        """Where a request's last token stands, whose keys and values are not there yet."""
        return request.num_read + len(request.new_tokens) - 1

    def _take(self, requests: Sequence[Request], logits: torch.Tensor) -> None:
        """Choose the next token of each request and hand on what it adds to the text."""
        tokens = choose(logits, [request.draws for request in requests], [request.seen for request in requests])
        for request, token in zip(requests, tokens, strict=True):
            request.new_tokens.append(token)
        for request in requests:
            try:
                reason = self._show(request)
            except Exception as error:  # noqa: BLE001 - a request that fails fails alone
                reason, request.error = "failed", first_line(error)
            if reason is not None:
                self._leave(request, reason)

    def _show(self, request: Request) -> Reason | None:
        """Hand on what a request's last token adds to its text; why it ends, if it does."""
        token = request.new_tokens[-1]
        if request.seen is not None:
            request.seen[token] = True
        if request.first is None:
            request.first = time.monotonic()
        if token in self._stops:
            return "stop"
        if piece := request.text.add(token):
            request.deliver(piece)
        if request.text.is_stopped:
            return "stop"
        return "length" if len(request.new_tokens) == request.settings.max_new_tokens else None

    def _leave(self, request: Request, reason: Reason) -> None:
        """Free a request's row for the last of those that run."""
        row, last = self._running.index(request), len(self._running) - 1
        if row != last:
            self._running[row] = self._running[last]
            self._decoder.move(last, row, self._position(self._running[row]))
        self._running.pop()
        self._end(request, reason)

    def _arrange(self) -> None:
        """Have rows of the same bucket be neighbours again, where the decoder needs it."""
        if not self._decoder.needs_neighbours:
            return
        wanted = sorted(bucket(self._position(request)) for request in self._running)
        for row, size in enumerate(wanted):
            if bucket(self._position(self._running[row])) != size:
                other = next(number for number in range(len(wanted) - 1, row, -1) if bucket(self._position(self._running[number])) == size)
                self._swap(row, other)

    def _swap(self, row: int, other: int) -> None:
        for source, target in ((row, self._swapping), (other, row), (self._swapping, other)):
            self._decoder.move(source, target, max(self._position(self._running[each]) for each in (row, other)))
        self._running[row], self._running[other] = self._running[other], self._running[row]

    def _turn_away(self, request: Request | Scoring, reason: Reason, error: Exception | None = None) -> None:
        """End what does not run, or runs no more."""
        if isinstance(request, Request):
            request.error = first_line(error) if error else ""
            self._end(request, reason)
            return
        with suppress(Exception):  # a receiver that is gone
            request.deliver(error or RuntimeError("the engine has ended"))

    def _end(self, request: Request, reason: Reason) -> None:
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
            if reason in ("stop", "length") and (rest := request.text.finish()):
                request.deliver(rest)
            request.deliver(end)
