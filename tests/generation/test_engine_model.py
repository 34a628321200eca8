"""Requests that come, are cancelled, fail and are scored in any order: each gets what a model of the engine says, no row stays taken."""

import queue
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from prosemill.families import families
from prosemill.generation.decoder import Decoder
from prosemill.generation.engine import NUM_SPARE, Engine
from prosemill.generation.engine_thread import Event, Request
from prosemill.generation.sampling import Settings
from prosemill.pretrained import load_tokenizer
from tests import campaigns
from tests.campaigns import repeats
from tests.generation.models import CONTEXT, Tiny, draw, prompts
from tests.generation.promises import outcome
from tests.waiting import LIMIT

NUM_ROWS, NUM_STEPS = 3, 50
NUM_EXAMPLES = repeats(few=4, many=200)
PROMPTS = prompts([3, 60, 64, 65, 130])
ASKED = [
    Settings(max_new_tokens=1),
    Settings(max_new_tokens=12, temperature=0),
    Settings(max_new_tokens=12, temperature=1, seed=5, repetition_penalty=1.5),
    Settings(max_new_tokens=80, temperature=1, top_k=20, seed=6),
]
chosen = st.tuples(st.integers(0, len(PROMPTS) - 1), st.integers(0, len(ASKED) - 1))


@dataclass(eq=False)
class Asked:
    """A request that was made, and what came of it so far."""

    prompt: int
    settings: int
    fails_after: int | None
    """Pieces of text that its receiver takes."""
    events: queue.SimpleQueue[Event] = field(default_factory=queue.SimpleQueue)
    num_taken: int = 0
    is_cancelled: bool = False

    def take(self, event: Event) -> None:
        """As the receiver."""
        if isinstance(event, str):
            if self.num_taken == self.fails_after:
                raise ConnectionError("gone")
            self.num_taken += 1
        self.events.put(event)


class Machine(RuleBasedStateMachine):
    """What people do to an engine that all examples share: what one leaves behind is found by the next."""

    engine: Engine
    tiny: Tiny
    alone: dict[tuple[int, int], tuple[str, str, int]]
    """What each request gets that is the only one."""
    scores: list[float | Exception]
    """Of each prompt as a text."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = list[tuple[Asked, Request]]()
        self.scored = list[tuple[int, queue.SimpleQueue[float | Exception]]]()

    @rule(which=chosen, fails_after=st.none() | st.integers(0, 3))
    def submit(self, which: tuple[int, int], fails_after: int | None) -> None:
        asked = Asked(*which, fails_after)
        self.asked.append((asked, self.engine.submit(self.tiny.prompt(PROMPTS[asked.prompt]), ASKED[asked.settings], asked.take)))

    @rule(prompt=st.integers(0, len(PROMPTS) - 1))
    def score(self, prompt: int) -> None:
        self.scored.append((prompt, score(self.engine, self.tiny, PROMPTS[prompt])))

    @precondition(lambda self: self.asked)
    @rule(number=st.integers(0, 1000))
    def cancel(self, number: int) -> None:
        asked, request = self.asked[number % len(self.asked)]
        asked.is_cancelled = True
        request.cancel()

    @precondition(lambda self: self.asked)
    @rule(number=st.integers(0, 1000))
    def wait_for_an_answer(self, number: int) -> None:
        asked, request = self.asked.pop(number % len(self.asked))
        pieces = list[str]()
        while isinstance(event := asked.events.get(timeout=LIMIT), str):
            pieces.append(event)
        text, (whole, reason, num_tokens) = "".join(pieces), self.alone[asked.prompt, asked.settings]
        assert asked.events.empty(), "the end is the last"
        assert event.num_new_tokens == len(request.new_tokens) <= num_tokens
        if event.reason == "cancelled":
            assert asked.is_cancelled
            assert whole.startswith(text)
        elif event.reason == "failed":
            assert (event.error, asked.num_taken) == ("gone", asked.fails_after)
            assert whole.startswith(text)
        else:
            assert (text, event.reason, event.num_new_tokens) == (whole, reason, num_tokens)

    @precondition(lambda self: self.scored)
    @rule(number=st.integers(0, 1000))
    def wait_for_a_score(self, number: int) -> None:
        prompt, found = self.scored.pop(number % len(self.scored))
        assert found.get(timeout=LIMIT) == self.scores[prompt]

    @invariant()
    def no_more_run_than_there_are_rows_and_requests(self) -> None:
        assert self.engine.is_alive
        assert self.engine.num_running <= NUM_ROWS

    def teardown(self) -> None:
        while self.asked:
            self.wait_for_an_answer(0)
        while self.scored:
            self.wait_for_a_score(0)
        assert self.engine.num_running == 0


def score(engine: Engine, tiny: Tiny, tokens: list[int]) -> queue.SimpleQueue[float | Exception]:
    """Have a text scored, by an encoder's decoder behind itself."""
    found = queue.SimpleQueue[float | Exception]()
    engine.score(tiny.prompt(tokens) if tiny.family.task == "SEQ_2_SEQ_LM" else None, tokens, tokens, found.put)
    return found


@pytest.fixture(params=sorted(families()))
def machine(request: pytest.FixtureRequest, tiny_model: Path) -> Iterator[type[Machine]]:
    """The machine over the engine of a tiny model, which has answered each request alone."""
    tiny = draw(request.param)
    decoder = Decoder(tiny.family.layout(tiny.model), precision="int8", num_rows=NUM_ROWS + NUM_SPARE)
    with Engine(decoder, load_tokenizer(tiny_model), stops=(), context=CONTEXT) as engine:
        Machine.engine, Machine.tiny = engine, tiny
        Machine.alone = {
            (prompt, number): outcome(engine.answer(tiny.prompt(PROMPTS[prompt]), each))
            for prompt in range(len(PROMPTS))
            for number, each in enumerate(ASKED)
        }
        Machine.scores = [score(engine, tiny, tokens).get(timeout=LIMIT) for tokens in PROMPTS]
        assert all(isinstance(each, float) for each in Machine.scores)
        yield Machine


def test_any_order_of_requests_agrees_with_the_model(machine: type[Machine]) -> None:
    drawn = settings(max_examples=NUM_EXAMPLES, stateful_step_count=NUM_STEPS, deadline=None, database=None)
    run_state_machine_as_test(seed(campaigns.seed())(machine), settings=drawn)
