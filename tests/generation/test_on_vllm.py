"""vLLM keeps the promises of our own engine. What needs vLLM is skipped where it is not installed; everything else runs everywhere."""

import queue
import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from prosemill.errors import ProsemillError
from prosemill.families import families
from prosemill.generation.engine_thread import End, Event
from prosemill.generation.precision import Precision
from prosemill.generation.sampling import Settings
from prosemill.generation.writer import Writer
from tests.generation.models import CONTEXT, VLLM_FAMILIES, VLLM_WIDTH, Tiny, draw, folder_of, needs_vllm, prompts
from tests.generation.promises import (
    check_that_a_penalty_forbids_what_the_text_holds,
    check_that_only_the_likeliest_is_drawn_where_no_other_may_be,
    check_that_the_cancelled_leave_their_rows,
    outcome,
    tokens_of,
)
from tests.waiting import LIMIT

NUM_ROWS = 4


@pytest.fixture(scope="module", params=VLLM_FAMILIES)
def tiny(request: pytest.FixtureRequest) -> Tiny:
    """A model of each family that vLLM knows."""
    return draw(request.param, hidden_size=VLLM_WIDTH)


@pytest.fixture(scope="module")
def folder(tiny: Tiny, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where it lies."""
    return folder_of(tiny, tiny_model, tmp_path_factory.mktemp(tiny.family.name) / "model")


@pytest.fixture(scope="module")
def writer(folder: Path) -> Iterator[Writer]:
    """Served by vLLM, the tests of a family together: opening it takes longest."""
    with Writer.open(folder, precision="fp32", num_rows=NUM_ROWS, engine="vllm") as writer:
        yield writer


@needs_vllm
def test_greedy_tokens_are_those_of_generate_in_any_company(writer: Writer, tiny: Tiny) -> None:
    given = prompts([3, 10, 60, 64, 65, 150])
    settings = Settings(temperature=0, max_new_tokens=20)
    ends: queue.SimpleQueue[End] = queue.SimpleQueue()

    def note(event: Event) -> None:
        if isinstance(event, End):
            ends.put(event)

    requests = [writer.engine.submit(tiny.prompt(tokens), settings, note) for tokens in given]
    found = [ends.get(timeout=LIMIT) for _ in requests]
    assert [request.new_tokens for request in requests] == [tiny.greedy(tokens, 20) for tokens in given]
    for end in found:
        assert (end.reason, end.num_new_tokens) == ("length", 20)
        assert end.first_token_seconds is not None
        assert 0 <= end.queue_seconds <= end.first_token_seconds <= end.seconds
    assert writer.engine.num_running == 0


@needs_vllm
def test_a_text_as_long_as_the_model_sees_is_written_and_no_longer_one(writer: Writer, tiny: Tiny) -> None:
    [prompt] = prompts([CONTEXT - 6])  # and the token before it
    settings = Settings(temperature=0, max_new_tokens=5)
    assert tokens_of(writer.engine, (tiny.prompt(prompt), settings)) == [tiny.greedy(prompt, 5)]
    with pytest.raises(ValueError, match=rf"are {CONTEXT + 1} tokens, and the model sees {CONTEXT} at most"):
        writer.engine.answer(tiny.prompt(prompt), Settings(max_new_tokens=6))


@needs_vllm
def test_a_seed_repeats_and_another_does_not(writer: Writer, tiny: Tiny) -> None:
    [prompt] = prompts([10])
    texts = [outcome(writer.engine.answer(tiny.prompt(prompt), Settings(temperature=1, seed=seed)))[0] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


@needs_vllm
def test_only_the_likeliest_is_drawn_where_no_other_may_be(writer: Writer, tiny: Tiny) -> None:
    check_that_only_the_likeliest_is_drawn_where_no_other_may_be(writer.engine, tiny, prompts([10])[0])


@needs_vllm
def test_a_penalty_forbids_what_the_text_holds(writer: Writer, tiny: Tiny) -> None:
    check_that_a_penalty_forbids_what_the_text_holds(writer.engine, tiny, prompts([100])[0])


@needs_vllm
def test_a_stop_text_ends_the_answer_and_no_part_of_it_is_shown(writer: Writer, tiny: Tiny) -> None:
    [prompt] = prompts([10])
    settings = Settings(temperature=0, max_new_tokens=40)
    whole, reason, _ = outcome(writer.engine.answer(tiny.prompt(prompt), settings))
    assert reason == "length"
    stop = whole[20:23]
    answer = writer.engine.answer(tiny.prompt(prompt), Settings(temperature=0, max_new_tokens=40, stop=(stop,)))
    shown = ""
    for piece in answer:
        shown += piece
        assert whole[: whole.index(stop)].startswith(shown)
    assert answer.end is not None
    assert (shown, answer.end.reason) == (whole[: whole.index(stop)], "stop")
    assert answer.end.num_new_tokens < 40
    assert writer.engine.num_running == 0


@needs_vllm
def test_a_request_that_is_cancelled_leaves_its_row_to_others(writer: Writer, tiny: Tiny) -> None:
    check_that_the_cancelled_leave_their_rows(writer.engine, tiny.prompt(prompts([10])[0]), NUM_ROWS)


@needs_vllm
def test_a_request_that_fails_fails_alone(writer: Writer, tiny: Tiny) -> None:
    [prompt] = prompts([10])
    settings = Settings(temperature=0, max_new_tokens=20)
    ends: queue.SimpleQueue[End] = queue.SimpleQueue()

    def fail(event: Event) -> None:
        if not isinstance(event, End):
            raise ConnectionError("gone")
        ends.put(event)

    writer.engine.submit(tiny.prompt(prompt), settings, fail)
    unknown = writer.engine.answer([tiny.model.config.vocab_size], settings)
    assert tokens_of(writer.engine, (tiny.prompt(prompt), settings)) == [tiny.greedy(prompt, 20)]
    end = ends.get(timeout=LIMIT)
    assert (end.reason, end.error) == ("failed", "gone")
    assert outcome(unknown)[1:] == ("failed", 0)
    assert unknown.end is not None
    assert "tokens that the model does not know" in unknown.end.error


@needs_vllm
def test_scores_are_those_of_our_own_engine(writer: Writer, folder: Path, tiny: Tiny) -> None:
    with Writer.open(folder, precision="fp32", num_rows=1) as own:
        for length in (1, 2, 70, CONTEXT):  # at last as long as the model sees
            tokens = [0, *prompts([length - 1])[0]]
            labels = [*tokens[1:], 7]
            for ignored in (0, length // 2):  # some are only seen
                chosen = [-100] * ignored + labels[ignored:]
                found, expected = (score(each, tokens, chosen) for each in (writer, own))
                assert found == pytest.approx(expected, rel=1e-5)
    assert score(writer, [0, 5], [5, -100]) == pytest.approx(score(writer, [0], [5]), rel=1e-5)
    with pytest.raises(ValueError, match=f"{CONTEXT + 1} tokens, and the model sees {CONTEXT} at most"):
        score(writer, [0] * (CONTEXT + 1), [0] * (CONTEXT + 1))


def score(writer: Writer, tokens: list[int], labels: list[int]) -> float:
    """What an engine tells of a text."""
    found: queue.SimpleQueue[float | Exception] = queue.SimpleQueue()
    writer.engine.score(None, tokens, labels, found.put)
    value = found.get(timeout=LIMIT)
    assert isinstance(value, float)
    return value


@needs_vllm
def test_the_end_of_the_text_ends_the_answer(tiny_model: Path, tmp_path: Path) -> None:
    tiny = draw(VLLM_FAMILIES[0], hidden_size=VLLM_WIDTH)
    [prompt] = prompts([10])
    with Writer.open(folder_of(tiny, tiny_model, tmp_path), precision="fp32", num_rows=NUM_ROWS, engine="vllm") as writer:
        tokens = tiny.greedy(prompt, 10)
        engine = writer.engine
        engine._stops = frozenset([tokens[5]])
        answers = [engine.answer(tiny.prompt(prompt), Settings(max_new_tokens=10, temperature=0)) for _ in range(2)]
        assert [outcome(answer)[1:] for answer in answers] == [("stop", tokens.index(tokens[5]) + 1)] * 2
        under_way = [engine.answer(tiny.prompt(prompt), Settings(max_new_tokens=200, temperature=1)) for _ in range(NUM_ROWS + 2)]
        next(iter(under_way[0]))
    assert {outcome(answer)[1] for answer in under_way} <= {"cancelled", "length", "stop"}
    assert not engine.is_alive
    with pytest.raises(RuntimeError, match="the engine has ended"):
        engine.answer(tiny.prompt(prompt), Settings())


@needs_vllm
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_whose_vllm_fails_leaves_nobody_waiting(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = draw(VLLM_FAMILIES[0], hidden_size=VLLM_WIDTH)
    [prompt] = prompts([10])
    folder = folder_of(tiny, tiny_model, tmp_path)
    with Writer.open(folder, precision="bf16", num_rows=1, engine="vllm") as base:
        with Writer.open(folder, precision="bf16", num_rows=2, engine="vllm") as writer:
            base.warm_up()
            writer.warm_up()
            have_come = threading.Event()
            monkeypatch.setattr(writer.engine._llm, "step", lambda: have_come.wait(LIMIT) and 1 / 0)  # type: ignore[attr-defined]
            answers = [writer.engine.answer(tiny.prompt(prompt), Settings(max_new_tokens=9)) for _ in range(3)]
            have_come.set()
            assert [outcome(answer)[1] for answer in answers] == ["failed"] * 3
            writer.engine._thread.join(LIMIT)
            assert not writer.engine.is_alive
            base.warm_up()
        base.warm_up()


@needs_vllm
def test_the_one_that_was_opened_first_may_be_closed_first(tiny_model: Path, tmp_path: Path) -> None:
    folder = folder_of(draw(VLLM_FAMILIES[0], hidden_size=VLLM_WIDTH), tiny_model, tmp_path)
    with ExitStack() as before, ExitStack() as after:
        for stack in (before, after):
            writer = stack.enter_context(Writer.open(folder, precision="fp32", num_rows=1, engine="vllm"))
            writer.warm_up()
        before.close()
        writer.warm_up()  # raises if the engine cannot write
        assert writer.engine.is_alive


@needs_vllm
def test_a_model_that_is_cut_short_is_one_line_and_costs_the_others_nothing(tiny_model: Path, tmp_path: Path) -> None:
    folder = folder_of(draw(VLLM_FAMILIES[0], hidden_size=VLLM_WIDTH), tiny_model, tmp_path / "whole")
    cut = Path(shutil.copytree(folder, tmp_path / "cut")) / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    with Writer.open(folder, precision="fp32", num_rows=1, engine="vllm") as writer:
        assert f"vLLM does not take {cut.parent}: " in refused(cut.parent)
        writer.warm_up()


def refused(folder: Path, precision: Precision = "fp32") -> str:
    """The one line with which a folder is not served by vLLM."""
    with pytest.raises(ProsemillError) as refusal, Writer.open(folder, precision=precision, engine="vllm"):
        pass
    line = str(refusal.value)
    assert "\n" not in line
    return line


@needs_vllm
@pytest.mark.parametrize("name", sorted({*families()} - {*VLLM_FAMILIES}))
def test_a_family_that_vllm_does_not_serve_is_refused(name: str, tiny_model: Path, tmp_path: Path) -> None:
    line = refused(folder_of(draw(name), tiny_model, tmp_path))
    assert f"is of the family {name!r}, which vLLM does not serve here: unset PROSEMILL_ENGINE" in line


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_weights_of_few_bits_are_refused(tiny_model: Path, precision: Precision) -> None:
    assert f"vLLM does not hold weights in {precision} here: set PROSEMILL_PRECISION to bf16 or fp32" in refused(tiny_model, precision)


def test_a_folder_with_code_of_its_own_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    path = tmp_path / "model/config.json"
    path.write_text(path.read_text(encoding="utf-8").replace("{", '{"auto_map": {"AutoConfig": "own.Config"},', 1), encoding="utf-8")
    assert "names code of its own (auto_map)" in refused(tmp_path / "model")
