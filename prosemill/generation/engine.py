"""Continuous batching: one thread owns the model, and requests join and leave what it writes at every token.

    with Engine(decoder, tokenizer, stops=[0], context=2048) as engine:
        answer = engine.answer(tokens, Settings(temperature=0.8, seed=1))
        for piece in answer:            # text, as it comes
            print(piece, end="")
        print(answer.end)               # why it ended, and how many tokens it took

What a request gets depends on its prompt and its settings alone, not on who else is there (`decoder`), nor on when it came. Prompts are
read between the steps in which all others get their next token: long ones in pieces of `CHUNK` tokens, short ones together. An encoder,
which sees all of a text at once, reads a long one beside the steps.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import torch
from transformers import PreTrainedTokenizerFast

from prosemill.errors import first_line
from prosemill.generation.attention import bucket
from prosemill.generation.decoder import CHUNK, Decoder
from prosemill.generation.engine_thread import NO_NUMBERS, EngineThread, Event, Reason, Request, Scoring
from prosemill.generation.sampling import Draws, Settings, choose
from prosemill.generation.text import AnswerText

NUM_SPARE = 2
"""Rows of the decoder in which nobody gets tokens: one to read a prompt in, one through which two rows change places."""


@dataclass(eq=False)
class Drawn(Request):
    """A request whose tokens are chosen here."""

    draws: Draws = field(kw_only=True)
    num_read: int = 0
    logits: torch.Tensor | None = None
    """After the last token that was read of the prompt, [1, vocabulary], until the first new token is chosen."""
    seen: torch.Tensor | None = None
    """Whether the text holds a token, [vocabulary]; where a repetition penalty asks for it."""


class Engine(EngineThread):
    """The thread that writes. To be used as a context; its end cancels what is still being written."""

    def __init__(self, decoder: Decoder, tokenizer: PreTrainedTokenizerFast, *, stops: Sequence[int], context: int | None) -> None:
        super().__init__(tokenizer, stops=stops, context=context, is_encoded=decoder.is_encoded)
        assert decoder.num_rows > NUM_SPARE
        self._decoder = decoder
        self._capacity = decoder.num_rows - NUM_SPARE
        self._reading, self._swapping = self._capacity, self._capacity + 1
        self._running: list[Drawn] = []
        self._encoder = ThreadPoolExecutor(1, "encoder")
        self._encoding: tuple[Drawn | Scoring, Future[torch.Tensor]] | None = None
        """What is read beside the steps, which waits first."""

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._encoder.shutdown(cancel_futures=True)

    def _make_request(self, tokens: list[int], settings: Settings, deliver: Callable[[Event], None], text: AnswerText) -> Request:
        request = Drawn(tokens, settings, deliver, text, draws=Draws(settings))
        if settings.repetition_penalty != 1:
            request.seen = torch.zeros(self._decoder.vocabulary_size, dtype=torch.bool)
            request.seen[[self._decoder.start] if self._decoder.is_encoded else tokens] = True
        return request

    def _under_way(self) -> Sequence[Drawn]:
        return self._running

    def _work(self) -> None:
        for request in [request for request in self._running if request.is_cancelled]:
            self._leave(request, "cancelled")
        self._read_prompts()
        self._make_room()
        if self._running:
            self._step()

    def _read_prompts(self) -> None:
        """Read about `CHUNK` tokens of what waits, while there are rows for it."""
        left, reads_texts = CHUNK, self._decoder.reads_texts
        while left > 0 and self._waiting and len(self._running) < self._capacity:
            prompts = self._whole_prompts(left) if reads_texts else []
            if prompts and (reads_texts := self._read_texts(prompts)):
                left -= sum(request.num_read for request in prompts)
            else:
                left -= self._read_first()

    def _whole_prompts(self, left: int) -> list[Drawn]:
        """Those that wait first, as far as they can be read together: about `left` tokens, and a row for each."""
        found = list[Drawn]()
        for request in islice(self._waiting, self._capacity - len(self._running)):
            if left <= 0 or not isinstance(request, Drawn) or request.num_read > 0 or len(request.tokens) > CHUNK:
                break
            found.append(request)
            left -= len(request.tokens)
        return found

    def _read_texts(self, requests: Sequence[Drawn]) -> bool:
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
        assert isinstance(request, Drawn | Scoring)
        try:
            num_read, is_read = self._score(request) if isinstance(request, Scoring) else self._read(request)
        except Exception as error:  # noqa: BLE001 - a request that fails fails alone
            self._waiting.popleft()
            self._turn_away(request, "failed", error)
            return 0
        if is_read:
            self._waiting.popleft()
            if isinstance(request, Drawn):
                self._join_from_reading(request)
        return num_read

    def _read(self, request: Drawn) -> tuple[int, bool]:
        """Read a piece of a prompt; its tokens, and whether it was the last."""
        request.begin()
        if self._decoder.is_encoded:
            assert self._decoder.start is not None
            if not self._encode(request, request.tokens):
                return CHUNK, False
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
            if not self._encode(scoring, scoring.given):
                return CHUNK, False
            num_given = len(scoring.given)
        begin, end = scoring.num_read, scoring.num_read + CHUNK
        tokens = scoring.tokens[begin:end]
        scoring.nll.append(self._decoder.nll(self._reading, tokens, scoring.labels[begin:end], begin=begin))
        scoring.num_read += len(tokens)
        is_read = scoring.num_read == len(scoring.tokens)
        if is_read:
            scoring.tell()
        return num_given + len(tokens), is_read

    def _encode(self, request: Drawn | Scoring, tokens: Sequence[int]) -> bool:
        """Have the encoder read what a request goes on with; whether it has. With a long one it goes on while others get tokens.

        Until then nothing else is read: whoever asks says that a whole piece was.
        """
        if len(tokens) <= CHUNK:
            self._decoder.look_at(self._reading, self._decoder.encode(tokens))
            return True
        if self._encoding is None or self._encoding[0] is not request:
            if self._encoding is not None:  # of one that was cancelled
                self._encoding[1].cancel()
            self._encoding = request, self._encoder.submit(self._decoder.encode, tokens)
        encoded = self._encoding[1]
        if self._running and not encoded.done():
            return False
        self._encoding = None
        self._decoder.look_at(self._reading, encoded.result())
        return True

    def _join_from_reading(self, request: Drawn) -> None:
        logits, request.logits = request.logits, None
        assert logits is not None
        self._decoder.move(self._reading, len(self._running), request.num_read)
        self._join([request], logits)

    def _join(self, requests: Sequence[Drawn], logits: torch.Tensor) -> None:
        """Take requests among those that run, whose prompts stand in the rows behind theirs."""
        self._running += requests
        self._take(requests, logits)
        self._arrange()

    def _make_room(self) -> None:
        """Have memory for the next tokens. Where there is too little, the longest texts fail, which want the most."""
        while self._running:
            longest = max(self._running, key=self._position)
            try:
                self._decoder.reserve(self._position(longest) + 1)
                return
            except (MemoryError, RuntimeError) as error:  # torch's is the latter
                longest.error = first_line(error)
                self._leave(longest, "failed")

    def _step(self) -> None:
        positions = [self._position(request) for request in self._running]
        logits = self._decoder.step([request.new_tokens[-1] for request in self._running], positions)
        self.num_steps += 1
        self._take(list(self._running), logits)
        self._arrange()

    def _position(self, request: Drawn) -> int:
        """Where a request's last token stands, whose keys and values are not there yet."""
        return request.num_read + len(request.new_tokens) - 1

    def _take(self, requests: Sequence[Drawn], logits: torch.Tensor) -> None:
        """Choose the next token of each request and hand on what it adds to the text."""
        tokens = choose(logits, [request.draws for request in requests], [request.seen for request in requests])
        for request, token in zip(requests, tokens, strict=True):
            if token is None:
                request.error = NO_NUMBERS
                continue
            request.new_tokens.append(token)
            if request.seen is not None:
                request.seen[token] = True
        for request in requests:
            try:
                reason = "failed" if request.error else self._show(request)
            except Exception as error:  # noqa: BLE001 - a request that fails fails alone
                reason, request.error = "failed", first_line(error)
            if reason is not None:
                self._leave(request, reason)

    def _leave(self, request: Drawn, reason: Reason) -> None:
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
