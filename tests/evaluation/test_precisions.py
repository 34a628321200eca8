"""What weights of fewer bits cost is measured with the engine that serves, on the text that the evaluation scores."""

from typing import get_args

import pytest
import torch

from prosemill.evaluation.precisions import measure_precisions
from prosemill.evaluation.scoring import score_documents
from prosemill.families import families
from prosemill.generation.precision import Precision
from tests.generation.models import draw

CONTEXT = 80  # more than are read at once
END = 0


def documents(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(1, 200, (length,), generator=generator).tolist() for length in lengths]


@pytest.mark.parametrize("family", sorted(families()))
def test_in_fp32_the_engine_gets_the_evaluations_score_and_in_others_nearly(family: str) -> None:
    model, texts, advanced = draw(family).model, documents(30, 200, 1), list[int]()
    found = measure_precisions(model, texts, end_of_text_id=END, context=CONTEXT, num_tokens=1000, advance=advanced.append)
    settings = {"end_of_text_id": END, "context": CONTEXT, "stride": CONTEXT, "batch_size": 2, "device": model.device}
    expected = score_documents(model, texts, **settings, arithmetic="fp32")  # type: ignore[arg-type]
    assert set(found) == set(get_args(Precision))
    assert sum(advanced) == len(found) * expected.num_tokens
    assert {score.num_tokens for score in found.values()} == {expected.num_tokens}
    assert found["fp32"].nll_sum == pytest.approx(expected.nll_sum, rel=1e-5)
    for precision in ("bf16", "int8", "int4"):
        assert 0 < abs(found[precision].nll_sum / expected.nll_sum - 1) < 0.2


def test_no_more_windows_are_scored_than_are_needed() -> None:
    model = draw("llama").model
    found = measure_precisions(model, documents(200, 200), end_of_text_id=END, context=CONTEXT, num_tokens=100, advance=lambda _: None)
    assert found["int8"].num_tokens == 2 * CONTEXT
