"""A version's weights are held as its own evaluation allows, unless the user says how."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from prosemill.generation.precision import Precision
from prosemill.generation.sampling import Settings
from prosemill.generation.writer import Writer
from prosemill.serving.champion import load
from prosemill.serving.settings import ServiceSettings
from tests.serving.test_follower import Promoted

CHEAP = {"cost_bf16": 0.0001, "cost_int8": 0.005, "cost_int4": 0.006}
DEAR = CHEAP | {"cost_int8": 0.0051}


@pytest.mark.parametrize(
    ("costs", "asked", "expected"),
    [(CHEAP, "auto", "int8"), (DEAR, "auto", "bf16"), (DEAR, "int8", "int8")],
    ids=["cheap", "dear", "dear but asked for"],
)
def test_auto_holds_int8_where_it_costs_little(
    tiny_model: Path, costs: Mapping[str, float], asked: str, expected: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("PROSEMILL_PRECISION", asked)
    monkeypatch.setenv("PROSEMILL_NUM_ROWS", "1")
    texts = {}
    for precision in ("int8", "bf16"):
        with Writer.open(tiny_model, precision=precision, num_rows=1) as writer:
            texts[precision] = "".join(writer.answer("The history of", Settings()))
    assert texts["int8"] != texts["bf16"]
    champion = load(Promoted(tiny_model, costs=costs), ServiceSettings.read())
    try:
        assert champion.precision == expected
        assert "".join(champion.writer.answer("The history of", Settings())) == texts[expected]
    finally:
        champion.close()
