"""Requests come and go at any time, and each gets what it would get alone."""

import queue
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch

from prosemill.families import families
from prosemill.generation.decoder import CHUNK, Decoder
from prosemill.generation.engine import NUM_SPARE, Engine
from prosemill.generation.engine_thread import NO_NUMBERS, End, Event, Request
from prosemill.generation.precision import Precision
from prosemill.generation.sampling import Settings
from prosemill.pretrained import added_text, load_tokenizer
from tests.generation.models import CONTEXT, INVARIANT, Tiny, compiles, draw, need_invariance, prompts
from tests.generation.promises import (
    check_that_a_penalty_forbids_what_the_text_holds,
    check_that_only_the_likeliest_is_drawn_where_no_other_may_be,
    check_that_the_cancelled_leave_their_rows,
    outcome,
    tokens_of,
)
from tests.waiting import LIMIT

CAPACITY = 6
LENGTHS = [3, 10, 60, 64, 65, 100, 150]


@pytest.fixture(scope="module", params=sorted(families()))
def tiny(request: pytest.FixtureRequest) -> Tiny:
    """A model of each family."""
    return draw(request.param)


@contextmanager
def running(
    tiny: Tiny, tokenizer: Path, *, precision: Precision = "int8", stops: tuple[int, ...] = (), num_rows: int = CAPACITY
) -> Iterator[Engine]:
    """An engine of a model, with the tokenizer of a folder."""
    decoder = Decoder(tiny.family.layout(tiny.model), precision=precision, num_rows=num_rows + NUM_SPARE)
    with Engine(decoder, load_tokenizer(tokenizer), stops=stops, context=CONTEXT) as engine:
        yield engine


@pytest.fixture(scope="module")
def requests() -> list[tuple[list[int], Settings]]:
    """Prompts and settings of all kinds."""
    numbers = random.Random(0)  # noqa: S311 - no secrets
    chosen = [numbers.choice(LENGTHS) for _ in range(30)]
    return [
        (
            prompt,
            Settings(
                max_new_tokens=numbers.choice([1, 5, 30, 90]),
                temperature=numbers.choice([0, 0.7, 1.0]),
                top_k=numbers.choice([0, 20]),
                repetition_penalty=numbers.choice([1.0, 1.3]),
                seed=numbers.randrange(1000),
            ),
        )
        for prompt in prompts(chosen)
    ]


@pytest.mark.parametrize("precision", INVARIANT)
def test_a_request_gets_the_same_alone_and_among_others(
    tiny: Tiny, tiny_model: Path, requests: list[tuple[list[int], Settings]], precision: Precision
) -> None:
    numbers = random.Random(1)  # noqa: S311 - no secrets
    need_invariance(precision)
    with running(tiny, tiny_model, precision=precision) as engine:
        alone = [outcome(engine.answer(tiny.prompt(tokens), settings)) for tokens, settings in requests]
        answers = []
        for tokens, settings in requests:
            answers.append(engine.answer(tiny.prompt(tokens), settings))
            time.sleep(numbers.random() * 0.01)
        assert [outcome(answer) for answer in answers] == alone
        assert engine.num_running == 0
    assert len({text for text, _, _ in alone}) > len(alone) / 2


@pytest.fixture(scope="module")
def greedy(tiny: Tiny) -> list[tuple[list[int], list[int]]]:
    """Prompts, and what `generate` adds to each alone: so much that the first is not written before the last of 32 is read."""
    return [(tokens, tiny.greedy(tokens, number)) for number in (90, 100) for tokens in prompts(LENGTHS, seed=number)]


@pytest.mark.parametrize("num_rows", [1, 2, 8, 32])
def test_greedy_tokens_are_those_of_generate_in_any_company(
    tiny: Tiny, tiny_model: Path, greedy: list[tuple[list[int], list[int]]], held: tuple[threading.Event, list[int]], num_rows: int
) -> None:
    numbers, (goes_on, _) = random.Random(num_rows), held  # noqa: S311 - no secrets
    given = numbers.choices(greedy, k=num_rows + 16)
    events = queue.SimpleQueue[tuple[int, Event]]()
    requests, texts, num_running = list[Request](), [""] * len(given), list[int]()

    def note(number: int, event: Event) -> None:
        num_running.append(engine.num_running)
        events.put((number, event))

    with running(tiny, tiny_model, precision="fp32", num_rows=num_rows) as engine:
        for number, (prompt, expected) in enumerate(given):
            if number >= num_rows:  # one for each row has come; the others come while these are written, or later
                goes_on.set()
                time.sleep(numbers.random() * 0.01)
            settings = Settings(temperature=0, max_new_tokens=len(expected))
            requests.append(engine.submit(tiny.prompt(prompt), settings, partial(note, number)))
        num_left = len(given)
        while num_left:
            number, event = events.get(timeout=LIMIT)
            if isinstance(event, End):
                num_left -= 1
            else:
                texts[number] += event
    assert [request.new_tokens for request in requests] == [expected for _, expected in given]
    tokenizer = load_tokenizer(tiny_model)
    assert texts == [added_text(tokenizer, tiny.written(prompt), expected) for prompt, expected in given]
    assert max(num_running) == num_rows


def test_only_the_likeliest_is_drawn_where_no_other_may_be(tiny: Tiny, tiny_model: Path) -> None:
    with running(tiny, tiny_model, precision="fp32") as engine:
        check_that_only_the_likeliest_is_drawn_where_no_other_may_be(engine, tiny, prompts([10])[0])


def test_a_penalty_forbids_what_the_text_holds(tiny: Tiny, tiny_model: Path) -> None:
    [prompt] = prompts([100])
    plain, before = tiny.greedy(prompt, 40), tiny.written(prompt)
    assert len({*plain}) < len(plain), "the model repeats nothing, which proves little"
    assert {*plain} & {*before} or len(before) == 1, "nothing of the prompt comes again"
    with running(tiny, tiny_model, precision="fp32") as engine:
        check_that_a_penalty_forbids_what_the_text_holds(engine, tiny, prompt)


def test_a_penalty_is_that_of_generate_and_its_requests_alone(tiny: Tiny, tiny_model: Path) -> None:
    given = list(zip(prompts([10, 100, 65, 100]), (1.0, 1.3, 5.0, 0.9), strict=True))
    with running(tiny, tiny_model, precision="fp32") as engine:
        found = tokens_of(
            engine,
            *[(tiny.prompt(prompt), Settings(temperature=0, repetition_penalty=penalty, max_new_tokens=40)) for prompt, penalty in given],
        )
    assert found == [tiny.greedy(prompt, 40, repetition_penalty=penalty) for prompt, penalty in given]


def test_a_request_that_is_cancelled_leaves_its_row_to_others(tiny: Tiny, tiny_model: Path) -> None:
    with running(tiny, tiny_model) as engine:
        check_that_the_cancelled_leave_their_rows(engine, tiny.prompt(prompts([10])[0]), CAPACITY)


def test_a_request_whose_receiver_fails_fails_alone(tiny_model: Path) -> None:
    tiny = draw("llama")
    [prompt] = prompts([10])
    settings = Settings(max_new_tokens=20, temperature=1)
    ended = threading.Event()
    ends: list[End] = []

    def fail(event: Event) -> None:
        if isinstance(event, End):
            ends.append(event)
            ended.set()
        else:
            raise ConnectionError("gone")

    with running(tiny, tiny_model) as engine:
        expected = outcome(engine.answer(tiny.prompt(prompt), settings))
        engine.submit(tiny.prompt(prompt), settings, fail)
        assert outcome(engine.answer(tiny.prompt(prompt), settings)) == expected
        assert ended.wait(LIMIT)
        assert engine.is_alive
    assert [(end.reason, end.error) for end in ends] == [("failed", "gone")]


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, list[int]]]:
    """What lets engines take steps again, and of how many prompts each common reading was."""
    goes_on, num_read, read_texts, step = threading.Event(), list[int](), Decoder.read_texts, Decoder.step

    def note(decoder: Decoder, row: int, texts: list[list[int]]) -> torch.Tensor:
        num_read.append(len(texts))
        return read_texts(decoder, row, texts)

    monkeypatch.setattr(Decoder, "read_texts", note)
    monkeypatch.setattr(Decoder, "step", lambda *each: goes_on.wait(LIMIT) and step(*each))
    yield goes_on, num_read
    goes_on.set()


@compiles
def test_short_prompts_are_read_together(tiny_model: Path, held: tuple[threading.Event, list[int]]) -> None:
    tiny, (goes_on, num_read) = draw("llama"), held
    first, *given = prompts([10] * CAPACITY)
    chosen = [Settings(max_new_tokens=number) for number in (1, 5, 1, 1, 5)]  # some leave at once
    scores = queue.SimpleQueue[float | Exception]()
    with running(tiny, tiny_model) as engine:
        leading = engine.answer(first, Settings(max_new_tokens=5))
        next(iter(leading))  # the others come while it is held
        answers = [engine.answer(prompt, settings) for prompt, settings in zip(given[:2], chosen, strict=False)]
        engine.score(None, first, first, scores.put)
        answers += [engine.answer(prompt, settings) for prompt, settings in zip(given[2:], chosen[2:], strict=True)]
        goes_on.set()
        found = [outcome(answer) for answer in answers]
        assert num_read == [1, 2, 3], "the first one, those before the text that is scored, those after it"
        assert found == [outcome(engine.answer(prompt, settings)) for prompt, settings in zip(given, chosen, strict=True)]
        engine.score(None, first, first, scores.put)
        assert scores.get(timeout=LIMIT) == scores.get(timeout=LIMIT)


@compiles
def test_a_prompt_that_cannot_be_read_fails_alone(tiny_model: Path, held: tuple[threading.Event, list[int]]) -> None:
    tiny, (goes_on, num_read) = draw("llama"), held
    first, *given = prompts([10] * 4)
    settings = Settings(max_new_tokens=5)
    with running(tiny, tiny_model) as engine:
        leading = engine.answer(first, settings)
        next(iter(leading))
        answers = [engine.answer(prompt, settings) for prompt in given[:2]]
        broken = engine.answer([tiny.model.config.vocab_size], settings)
        answers.append(engine.answer(given[2], settings))
        goes_on.set()
        assert outcome(broken)[1:] == ("failed", 0)
        found = [outcome(answer) for answer in answers]
        assert num_read == [1, 4], "after it failed, each by itself"
        assert found == [outcome(engine.answer(prompt, settings)) for prompt in given]


def test_a_request_whose_logits_are_no_numbers_fails_alone(tiny: Tiny, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    longest, *given = (tiny.prompt(prompt) for prompt in prompts([30, 10, 10, 12]))
    settings, step = Settings(max_new_tokens=8), Decoder.step

    def break_row(decoder: Decoder, tokens: list[int], positions: list[int]) -> torch.Tensor:
        logits = step(decoder, tokens, positions).clone()
        for row, request in enumerate(engine._running):
            if request.tokens == longest and len(request.new_tokens) == 3:
                logits[row] = torch.nan
        return logits

    with running(tiny, tiny_model) as engine:
        expected = [outcome(engine.answer(prompt, settings)) for prompt in given]
        monkeypatch.setattr(Decoder, "step", break_row)
        broken, *answers = [engine.answer(prompt, settings) for prompt in (longest, *given)]
        assert [outcome(answer) for answer in answers] == expected
        assert outcome(broken)[1:] == ("failed", 3)
        assert broken.end is not None
        assert broken.end.error == NO_NUMBERS
        scores = queue.SimpleQueue[float | Exception]()
        monkeypatch.setattr(Decoder, "nll", lambda *_, **__: torch.nan)
        engine.score(given[0] if engine._is_encoded else None, given[0], given[0], scores.put)
        assert str(scores.get(timeout=LIMIT)) == NO_NUMBERS
        assert engine.is_alive


def test_a_text_for_which_there_is_no_memory_fails_alone(tiny: Tiny, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    longest, short = (tiny.prompt(prompt) for prompt in prompts([30, 10]))
    reserve = Decoder.reserve

    def reserve_little(decoder: Decoder, length: int) -> None:
        if length > 35:
            raise RuntimeError("not enough memory\nand a page of advice")
        reserve(decoder, length)

    with running(tiny, tiny_model) as engine:
        expected = outcome(engine.answer(short, Settings(max_new_tokens=20)))
        monkeypatch.setattr(Decoder, "reserve", reserve_little)
        failing, answer = engine.answer(longest, Settings(max_new_tokens=90)), engine.answer(short, Settings(max_new_tokens=20))
        assert outcome(answer) == expected
        assert outcome(failing)[1] == "failed"
        assert failing.end is not None
        assert failing.end.error == "not enough memory"
        assert outcome(engine.answer(short, Settings(max_new_tokens=20))) == expected


def test_a_stop_text_ends_the_answer_and_is_not_shown(tiny_model: Path) -> None:
    tiny = draw("llama")
    [prompt] = prompts([10])
    with running(tiny, tiny_model) as engine:
        whole, _, _ = outcome(engine.answer(tiny.prompt(prompt), Settings(max_new_tokens=40)))
        stop = whole[20:23]
        text, reason, num_new_tokens = outcome(engine.answer(tiny.prompt(prompt), Settings(max_new_tokens=40, stop=(stop,))))
    assert (text, reason) == (whole[: whole.index(stop)], "stop")
    assert num_new_tokens < 40


def test_the_end_of_the_text_ends_the_answer(tiny: Tiny, tiny_model: Path) -> None:
    [prompt] = prompts([10])
    tokens = tiny.greedy(prompt, 10)
    end_of_text = tokens[5]
    with running(tiny, tiny_model, stops=(end_of_text,)) as engine:
        _, reason, num_new_tokens = outcome(engine.answer(tiny.prompt(prompt), Settings(max_new_tokens=10, temperature=0)))
    assert (reason, num_new_tokens) == ("stop", tokens.index(end_of_text) + 1)


def test_more_than_the_model_sees_is_refused_with_both_numbers(tiny_model: Path) -> None:
    tiny = draw("llama")
    [prompt] = prompts([200])
    with running(tiny, tiny_model) as engine, pytest.raises(ValueError, match=rf"are 301 tokens, and the model sees {CONTEXT} at most"):
        engine.answer(tiny.prompt(prompt), Settings(max_new_tokens=100))


def test_an_engine_that_ends_ends_what_is_under_way(tiny_model: Path) -> None:
    tiny = draw("llama")
    [prompt] = prompts([10])
    with running(tiny, tiny_model) as engine:
        answers = [engine.answer(tiny.prompt(prompt), Settings(max_new_tokens=200, temperature=1)) for _ in range(CAPACITY + 2)]
        next(iter(answers[0]))
    assert {outcome(answer)[1] for answer in answers} <= {"cancelled", "length"}
    assert not engine.is_alive
    with pytest.raises(RuntimeError, match="the engine has ended"):
        engine.answer(tiny.prompt(prompt), Settings())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_whose_model_fails_leaves_nobody_waiting(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = draw("llama")
    [prompt] = prompts([10])
    with running(tiny, tiny_model) as engine:
        monkeypatch.setattr(Decoder, "step", lambda *_: 1 / 0)
        assert outcome(engine.answer(tiny.prompt(prompt), Settings(max_new_tokens=9)))[1:] == ("failed", 1)
        engine._thread.join(LIMIT)
        assert not engine.is_alive


def test_a_long_prompt_does_not_stall_others(tiny_model: Path) -> None:
    tiny = draw("llama")
    short, long = prompts([5, 220])
    with running(tiny, tiny_model) as engine:
        steps: queue.SimpleQueue[int] = queue.SimpleQueue()
        arrived: list[Request] = []

        def note(_: Event) -> None:
            steps.put(engine.num_steps)

        def bring(_: Event) -> None:
            if not arrived:
                steps.put(engine.num_steps)
                arrived.append(engine.submit(tiny.prompt(long), Settings(max_new_tokens=1), note))

        engine.submit(tiny.prompt(short), Settings(max_new_tokens=200, temperature=1), bring)
        before, after = steps.get(timeout=LIMIT), steps.get(timeout=LIMIT)
    # Four pieces of the prompt, and between any two of them a token for the other.
    assert after - before >= 3


def test_an_encoder_reads_a_long_prompt_beside_the_steps(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny, encode = draw("t5"), Decoder.encode
    short, long, other = (tiny.prompt(prompt) for prompt in prompts([5, 200, 100]))
    settings, is_encoding, goes_on = Settings(max_new_tokens=5), threading.Event(), threading.Event()

    def hold(decoder: Decoder, tokens: list[int]) -> torch.Tensor:
        if len(tokens) > CHUNK:
            is_encoding.set()
            assert goes_on.wait(LIMIT)
        return encode(decoder, tokens)

    with running(tiny, tiny_model) as engine:
        expected = outcome(engine.answer(other, settings))
        monkeypatch.setattr(Decoder, "encode", hold)
        writing = engine.answer(short, Settings(max_new_tokens=200, temperature=1))
        next(iter(writing))
        cancelled, last = engine.answer(long, settings), engine.answer(other, settings)
        scores = queue.SimpleQueue[float | Exception]()
        engine.score(other, other, other, scores.put)
        assert is_encoding.wait(LIMIT)
        assert outcome(writing)[1:] == ("length", 200), "it gets all its tokens meanwhile"
        cancelled.cancel()
        goes_on.set()
        assert outcome(last) == expected
        assert isinstance(scores.get(timeout=LIMIT), float)
        assert outcome(cancelled)[1] in ("cancelled", "length")
