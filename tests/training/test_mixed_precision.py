"""Mixed precision: matrix products in bf16, and in fp32 whatever remembers a step, so that no step is too small to count."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from prosemill.pretrained import load_model
from tests.training.conftest import FULL, inside, train, train_section, trainer_of

# Around 1, where the weights of norms begin, bf16's next numbers are 4e-3 below and 8e-3 above; T5's begin at 0.3, with 2e-3 on both sides.
SMALL_STEPS = FULL | {"learning_rate": 1e-3, "precision": "bf16"}


@pytest.fixture
def bf16_base(base: Path, tmp_path: Path) -> Path:
    """The base model with its weights saved in bf16."""
    folder = shutil.copytree(base, tmp_path / "bf16")
    load_model(base, torch.bfloat16).save_pretrained(folder)
    assert {weight.dtype for weight in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    return folder


class Look(TrainerCallback):
    """What has which dtype at each step: results of the output layer, parameters, and the optimizer's memory of them."""

    def __init__(self) -> None:
        self.products: set[torch.dtype] = set()
        self.parameters: set[torch.dtype] = set()
        self.memories: set[torch.dtype] = set()

    def on_train_begin(self, *_: Any, model: Any = None, **__: Any) -> None:
        model.get_output_embeddings().register_forward_hook(lambda _, __, logits: self.products.add(logits.dtype))

    def on_step_end(self, *_: Any, model: Any = None, optimizer: Any = None, **__: Any) -> None:
        state = optimizer.state_dict()
        self.parameters |= {parameter.dtype for parameter in model.parameters()}
        for part in state.get("parts", [state]):
            self.memories |= {value.dtype for memory in part["state"].values() for value in memory.values() if torch.is_tensor(value)}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_weights_and_the_optimizers_memory_are_fp32_while_products_are_bf16(
    bf16_base: Path, blocks: Path, tmp_path: Path, optimizer: str
) -> None:
    look = Look()
    with inside(tmp_path) as root:
        trainer_of(train_section(**SMALL_STEPS, optimizer=optimizer, max_steps=2), blocks, bf16_base, root, look).train()
    assert look.products == {torch.bfloat16}
    assert look.parameters == look.memories == {torch.float32}


def test_steps_too_small_for_bf16_reach_the_trained_model(bf16_base: Path, blocks: Path, tmp_path: Path) -> None:
    with inside(tmp_path) as root:
        metrics = train(train_section(**SMALL_STEPS), blocks, bf16_base, root)
    before, after = load_model(bf16_base).state_dict(), load_file(tmp_path / "trained/model.safetensors")
    assert {weight.dtype for weight in after.values()} == {torch.float32}
    norms = {name: weight for name, weight in before.items() if weight.ndim == 1 and weight[0] > 0 and weight.eq(weight[0]).all()}
    assert norms
    assert all(after[name].ne(start).any() and after[name].bfloat16().eq(start).any() for name, start in norms.items())
    assert metrics["best_validation_loss"] < metrics["base_validation_loss"]
