"""What a model is trained with where the method is its own choice: LoRA for the LLaMA that exist, every weight for all others."""

from pathlib import Path

import pytest

from prosemill.params import Train, parse_section
from tests.composing import composed

ROOT = Path(__file__).parents[1]
MODELS = sorted(path.stem for path in (ROOT / "experiments/model").glob("*.yaml"))
PRETRAINED_LLAMAS = {"llama", "smollm2", "smollm2-hub", "tinyllama"}


def own_method(model: str) -> Train:
    """The train section of the model with `method=own`."""
    return parse_section("train", Train, composed(f"model={model}", "method=own")["train"])


@pytest.mark.parametrize("model", MODELS)
def test_pretrained_llamas_alone_choose_lora(model: str) -> None:
    assert (own_method(model).lora is not None) == (model in PRETRAINED_LLAMAS)


def test_the_pretrained_llamas_are_there() -> None:
    assert set(MODELS) >= PRETRAINED_LLAMAS
