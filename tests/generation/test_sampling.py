"""The next token is drawn from what a request's settings leave, and no row depends on another."""

import math
from typing import Any

import pytest
import torch

from prosemill.generation import native
from prosemill.generation.sampling import CANDIDATES, Draws, Settings, choose, penalise
from tests.generation.models import compiles

VOCABULARY = 2000
NUM_DRAWS = 4000


def logits(num_rows: int, *, spread: float = 2.0, seed: int = 0) -> torch.Tensor:
    """[num_rows, VOCABULARY] with one maximum a row."""
    return torch.randn(num_rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * spread


WANTED: list[dict[str, Any]] = [
    {"top_p": 0.5},
    {"top_p": 0.9},
    {"top_p": 1.0},
    {"top_k": 5, "top_p": 1.0},
    {"top_k": 5, "top_p": 0.7},
    {"top_k": CANDIDATES + 100, "top_p": 0.95},
    {"temperature": 0.3},
    {"temperature": 3.0, "top_p": 0.99},
]


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("settings", [{"temperature": 0}, *WANTED], ids=str)
@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_nothing_is_drawn_from_logits_that_are_no_numbers(settings: dict[str, Any], broken: float) -> None:
    rows = logits(4)
    rows[1] = broken
    rows[2, 7] = broken
    rows[3, 7] = -math.inf  # a token that will not come
    found = choose(rows, [Draws(Settings(**settings)) for _ in rows], [None] * 4)
    assert [token is None for token in found] == [False, True, True, False]


def one(row: torch.Tensor, draws: Draws) -> int:
    [token] = choose(row[None], [draws], [None])
    assert token is not None
    return token


def allowed(row: torch.Tensor, settings: Settings) -> set[int]:
    """The tokens that transformers' own filters leave."""
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    warpers: list[Any] = [TemperatureLogitsWarper(settings.temperature)]
    warpers += [TopKLogitsWarper(settings.top_k)] if settings.top_k else []
    warpers += [TopPLogitsWarper(settings.top_p)] if settings.top_p < 1 else []
    filters: Any = LogitsProcessorList(warpers)
    left = filters(torch.zeros(1, 1, dtype=torch.long), row[None].clone())[0]
    return set(torch.nonzero(left > -math.inf).flatten().tolist())


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("settings", WANTED, ids=str)
def test_draws_are_those_that_transformers_filters_leave(settings: dict[str, Any]) -> None:
    row, wanted = logits(1)[0], Settings(**settings)
    draws = Draws(wanted)
    left = allowed(row, wanted)
    found = [one(row, draws) for _ in range(NUM_DRAWS)]
    assert set(found) <= left
    probabilities = torch.softmax(row / wanted.temperature, dim=-1)
    share = {token: float(probabilities[token]) for token in left}
    likeliest = max(share, key=lambda token: share[token])
    expected = share[likeliest] / sum(share.values())
    deviation = math.sqrt(expected * (1 - expected) / NUM_DRAWS)
    assert abs(found.count(likeliest) / NUM_DRAWS - expected) <= 4 * deviation + 1e-9


@pytest.mark.usefixtures("arithmetic")
def test_a_row_gets_the_same_alone_and_among_others() -> None:
    rows = logits(32).to(torch.bfloat16)
    settings = [Settings(seed=row, temperature=(0.0, 0.7, 1.0, 2.0)[row % 4], top_k=(0, 40)[row % 2]) for row in range(32)]
    seen = [None] * 32
    together = choose(rows, [Draws(each) for each in settings], seen)
    assert together == [one(rows[row], Draws(settings[row])) for row in range(32)]
    assert together[::-1] == choose(rows.flip(0), [Draws(each) for each in settings[::-1]], seen)


@compiles
@pytest.mark.parametrize("settings", WANTED, ids=str)
def test_the_native_kernels_draw_what_torch_draws(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    rows, wanted = logits(40), Settings(**settings)
    ours, theirs = ([Draws(wanted) for _ in rows] for _ in range(2))
    found = [choose(rows, ours, [None] * len(rows)) for _ in range(5)]
    monkeypatch.setattr(native, "load", lambda: None)
    assert found == [choose(rows, theirs, [None] * len(rows)) for _ in range(5)]


@pytest.mark.usefixtures("arithmetic")
def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    rows = logits(40)
    first, again, other = (
        [one(row, draws) for row in rows] for draws in (Draws(Settings(seed=1)), Draws(Settings(seed=1)), Draws(Settings(seed=2)))
    )
    assert first == again != other


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("temperature", [1e-3, 1e-20, 1e-40, 1e-60])
def test_a_temperature_near_zero_takes_the_likeliest(temperature: float) -> None:
    rows = logits(5)
    found = choose(rows, [Draws(Settings(temperature=temperature, top_p=1.0)) for _ in rows], [None] * 5)
    assert found == rows.argmax(dim=-1).tolist()


@pytest.mark.usefixtures("arithmetic")
def test_without_temperature_the_likeliest_token_comes() -> None:
    rows = logits(4)
    draws = [Draws(Settings(temperature=0)) for _ in range(4)]
    assert choose(rows, draws, [None] * 4) == rows.argmax(-1).tolist()


def test_a_penalty_is_transformers_and_touches_its_own_row_alone() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    rows = logits(2)
    seen_ids = rows.topk(3).indices
    seen = torch.zeros(2, VOCABULARY, dtype=torch.bool).scatter(1, seen_ids, value=True)
    theirs = RepetitionPenaltyLogitsProcessor(1.5)(seen_ids, rows.clone())
    assert torch.equal(penalise(rows[0], seen[0], 1.5), theirs[0])
    before = rows.clone()
    greedy = [Draws(Settings(temperature=0, repetition_penalty=50.0)), Draws(Settings(temperature=0))]
    found = choose(rows, greedy, list(seen))
    assert found == [int(rows[0].topk(4).indices[3]), int(rows[1].argmax())]
    assert torch.equal(rows, before), "the model's logits are not changed"


@pytest.mark.parametrize("penalty", [5e-324, 1e-60, 1e60, 1.7e308])
def test_no_penalty_makes_numbers_of_logits_that_are_none(penalty: float) -> None:
    rows = logits(2)
    rows[:, 3] = 0
    seen = torch.ones(VOCABULARY, dtype=torch.bool)
    assert torch.isfinite(penalise(rows[0], seen, penalty)).all()
    draws = [Draws(Settings(temperature=temperature, repetition_penalty=penalty)) for temperature in (0, 0.8)]
    assert None not in choose(rows, draws, [seen, seen])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("temperature", -1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", -1),
        ("top_p", 0),
        ("top_p", 1.1),
        ("repetition_penalty", 0),
        ("stop", ("a", "")),
        ("seed", -1),
        ("seed", 2**63),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be"):
        Settings(**{name: value})
