"""Every family trains through the same door: with LoRA and in full, in parts and at once, with either optimizer."""

import importlib.util
from collections import Counter
from copy import deepcopy as copy_of
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from prosemill.errors import ProsemillError
from prosemill.families import family_of
from prosemill.pretrained import load_model
from prosemill.tokens import Blocks
from prosemill.training.adapters import load_base
from prosemill.training.loss import validation_nll
from prosemill.training.muon import MuonAndAdamW
from tests.training.conftest import FULL, LORA, inside, train, train_section, trainer_of

HAS_FOUR_BITS = torch.cuda.is_available() and importlib.util.find_spec("bitsandbytes") is not None


@pytest.mark.parametrize("method", [FULL, LORA, FULL | {"optimizer": "muon"}], ids=["full", "lora", "muon"])
def test_every_family_learns(base: Path, blocks: Path, tmp_path: Path, method: dict[str, Any]) -> None:
    with inside(tmp_path) as root:
        metrics = train(train_section(**method), blocks, base, root)
    assert metrics["best_validation_loss"] < metrics["base_validation_loss"]
    assert 0 < metrics["mfu"] < 1
    assert family_of(root / "trained") is family_of(base)
    assert (metrics["num_trained_parameters"] == metrics["num_parameters"]) == (method["lora"] is None)
    if method["lora"] is None:
        assert metrics["num_parameters"] == load_model(base).num_parameters()


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_parts_make_the_gradient_of_the_whole_batch_in_the_trainer(base: Path, brief_blocks: Path, tmp_path: Path, parts: int) -> None:
    """Trainer itself divides and counts: its first step of 8 blocks, in parts of 8, 4, 2 and 1 blocks that hold document borders."""

    class Keep(TrainerCallback):
        gradient = torch.zeros(0)

        def on_pre_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
            self.gradient = torch.cat([weight.grad.flatten().clone() for weight in model.parameters() if weight.grad is not None])

    def gradient(accumulation: int) -> torch.Tensor:
        section, keep = train_section(**FULL, batch_size=8, gradient_accumulation=accumulation, max_steps=1, max_grad_norm=1e9), Keep()
        with inside(tmp_path / str(accumulation)) as root:
            trainer_of(section, brief_blocks, base, root, keep).train()
        return keep.gradient

    training = Blocks.open(brief_blocks, "train")
    assert len(training) >= 8
    assert all(training.end_of_text_id in training[number][:-1] for number in range(len(training)))
    whole, divided = gradient(1), gradient(parts)
    assert float(whole.norm()) > 0
    assert float((whole - divided).norm() / whole.norm()) < 1e-4


@pytest.mark.parametrize("method", [FULL, LORA], ids=["full", "lora"])
def test_gradient_checkpointing_computes_every_layer_twice_and_the_same_losses(
    base: Path, blocks: Path, tmp_path: Path, method: dict[str, Any]
) -> None:
    targets = family_of(base).lora_targets

    def calls_and_losses(*, checkpointing: bool) -> tuple[Counter[str], list[float]]:
        """How often each layer that gets an adapter ran while training, and the losses of all steps."""
        calls: Counter[str] = Counter()

        def count(name: str, layer: torch.nn.Module) -> None:
            calls[name] += layer.training

        with inside(tmp_path / str(checkpointing)) as root:
            trainer = trainer_of(train_section(**method, gradient_checkpointing=checkpointing), blocks, base, root)
            assert trainer.model is not None
            for name, layer in trainer.model.named_modules():
                if name.rpartition(".")[2] in targets:
                    layer.register_forward_pre_hook(lambda layer, _, name=name: count(name, layer))
            trainer.train()
        return calls, [row["loss"] for row in trainer.state.log_history if "loss" in row]

    calls, losses = calls_and_losses(checkpointing=False)
    calls_twice, same_losses = calls_and_losses(checkpointing=True)
    assert set(calls.values()) == {4}, "once a step"
    assert calls_twice == Counter({name: 2 * number for name, number in calls.items()})
    assert same_losses == pytest.approx(losses, rel=1e-6)


def test_the_first_training_loss_is_the_mean_over_predicted_tokens(base: Path, blocks: Path, tmp_path: Path) -> None:
    section = train_section(**FULL, batch_size=8, gradient_accumulation=2, max_steps=1)
    with inside(tmp_path) as root:
        trainer = trainer_of(section, blocks, base, root)
        (batches,) = [trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 2, torch.device("cpu"))[0]]
        model = load_model(base)
        model.config.use_cache = False
        sums = [validation_nll(model, batch, 0) for batch in batches]
        trainer.train()
    logged = next(row["loss"] for row in trainer.state.log_history if "loss" in row)
    assert logged == pytest.approx(sum(nll for nll, *_ in sums) / sum(count for _, count, *_ in sums), rel=1e-5)


def test_frozen_weights_in_bf16_merge_into_the_originals(base: Path, blocks: Path, tmp_path: Path) -> None:
    with inside(tmp_path) as root:
        train(train_section(**LORA, base_precision="bf16"), blocks, base, root)
    before, after = load_model(base).state_dict(), load_model(root / "trained").state_dict()
    frozen = [name for name in before if not any(f"{target}." in name for target in family_of(base).lora_targets)]
    assert frozen
    assert all(torch.equal(before[name], after[name]) for name in frozen), "what was frozen leaves as it came, in fp32"
    assert not all(torch.equal(before[name], after[name]) for name in before)


def test_adapters_stay_in_fp32_beside_a_bf16_base(base: Path, blocks: Path, tmp_path: Path) -> None:
    section = train_section(**LORA, base_precision="bf16")
    with inside(tmp_path) as root:
        trainer = trainer_of(section, blocks, base, root)
    assert trainer.model is not None
    kinds = {parameter.requires_grad: parameter.dtype for parameter in trainer.model.parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}


def test_four_bits_need_cuda(base: Path) -> None:
    section = train_section(**LORA, base_precision="nf4")
    with pytest.raises(ProsemillError, match=r"`train.base_precision`: nf4 \(QLoRA\) needs a CUDA device.*set it to bf16"):
        load_base(section, base, torch.device("cpu"))


def test_four_bits_name_the_package_that_they_need(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    section = train_section(**LORA, base_precision="nf4")
    with pytest.raises(
        ProsemillError, match=r"nf4 \(QLoRA\) needs bitsandbytes: run `pip install bitsandbytes`; or set it to bf16"
    ) as caught:
        load_base(section, base, torch.device("cuda"))
    assert "\n" not in str(caught.value)


@pytest.mark.cuda
@pytest.mark.skipif(not HAS_FOUR_BITS, reason="QLoRA needs a CUDA device and bitsandbytes")
def test_a_step_over_four_bits_moves_what_has_adapters_alone(base: Path, blocks: Path, tmp_path: Path) -> None:
    section = train_section(**LORA, base_precision="nf4", precision="bf16", max_steps=1, warmup_ratio=0.0)
    with inside(tmp_path) as root:
        metrics = train(section, blocks, base, root)
    before, after = load_model(base).state_dict(), load_model(root / "trained").state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.split(".")[-2] in family_of(base).lora_targets and name.endswith(".weight")}
    assert metrics["num_parameters"] == load_model(base).num_parameters(), "two weights of four bits lie in one byte"


def test_targets_that_match_nothing_are_named_with_those_that_exist(base: Path, blocks: Path, tmp_path: Path) -> None:
    section = train_section(lora={"targets": ["w_nothing"]})
    target = family_of(base).lora_targets[0]
    with inside(tmp_path), pytest.raises(ProsemillError, match=rf"`train.lora.targets`: .*'w_nothing'; choose from .*\b{target}\b"):
        train(section, blocks, base, tmp_path)


def test_muon_takes_the_hidden_matrices_and_comes_back_from_its_state(base: Path) -> None:
    def step(model: Any, optimizer: MuonAndAdamW, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()

    model = load_model(base)
    optimizer = MuonAndAdamW(model, learning_rate=1e-3, adamw_learning_rate=1e-2, weight_decay=0.1)
    assert sorted(id(p) for group in optimizer.param_groups for p in group["params"]) == sorted(map(id, model.parameters()))
    muon_group = optimizer.param_groups[0]
    embeddings = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    assert muon_group["params"]
    assert not embeddings & {id(parameter) for parameter in muon_group["params"]}
    step(model, optimizer, 1)
    copy = load_model(base)
    copy.load_state_dict(model.state_dict())
    restored = MuonAndAdamW(copy, learning_rate=9.0, adamw_learning_rate=9.0, weight_decay=0.0)
    restored.load_state_dict(copy_of(optimizer.state_dict()))
    step(model, optimizer, 2)
    step(copy, restored, 2)
    for one, other in zip(model.parameters(), copy.parameters(), strict=True):
        assert torch.equal(one, other)


def test_muon_and_adamw_keep_their_own_rates(base: Path, blocks: Path, tmp_path: Path) -> None:
    def rates(**values: float) -> dict[float, int]:
        """How many parameters are trained at which rate."""
        section = train_section(**FULL | {"learning_rate": 0.5}, optimizer="muon", **values)
        with inside(tmp_path) as root:
            optimizer = trainer_of(section, blocks, base, root).optimizer
        assert optimizer is not None
        groups = optimizer.param_groups
        return {group["lr"]: sum(len(other["params"]) for other in groups if other["lr"] == group["lr"]) for group in groups}

    num_parameters = len(list(load_model(base).parameters()))
    assert rates() == {0.5: num_parameters}
    apart = rates(adamw_learning_rate=0.25)
    assert apart.keys() == {0.5, 0.25}
    assert sum(apart.values()) == num_parameters
