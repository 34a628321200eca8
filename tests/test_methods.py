"""What a model is trained with where the method is its own choice: LoRA for the LLaMA that exist, every weight for all others."""

from pathlib import Path

import pytest
import yaml
from dvc.utils.hydra import compose_and_dump

from prosemill.params import Train, parse_section

ROOT = Path(__file__).parents[1]
MODELS = sorted(path.stem for path in (ROOT / "experiments/model").glob("*.yaml"))
PRETRAINED_LLAMAS = {"llama", "smollm2", "smollm2-hub", "tinyllama"}


def own_method(folder: Path, model: str) -> Train:
    """The train section of the model with `method=own`."""
    overrides = [f"model={model}", "method=own"]
    compose_and_dump(folder / "params.yaml", str(ROOT / "experiments"), None, "default", str(ROOT / ".dvc/plugins"), overrides)
    return parse_section("train", Train, yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))["train"])


@pytest.mark.parametrize("model", MODELS)
def test_pretrained_llamas_alone_choose_lora(tmp_path: Path, model: str) -> None:
    assert (own_method(tmp_path, model).lora is not None) == (model in PRETRAINED_LLAMAS)


def test_the_pretrained_llamas_are_there() -> None:
    assert set(MODELS) >= PRETRAINED_LLAMAS
