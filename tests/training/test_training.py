"""What training promises: the same seed gives the same weights, only what should move moves, and the best checkpoint leaves."""

import csv
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

from prosemill.errors import ProsemillError
from prosemill.families import family_of
from prosemill.params import Lora
from prosemill.pretrained import load_model
from prosemill.tokens import Blocks
from prosemill.training import fingerprint_of
from prosemill.training.adapters import add_adapters, export
from prosemill.training.loss import validation_nll
from prosemill.training.trainer import BlockCollator, BlockDataset
from tests.training.conftest import inside, train, train_section

TRAJECTORY = Path(__file__).with_name("trajectory.json")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, blocks: Path, tiny_model: Path) -> tuple[Path, dict[str, Any]]:
    """One training run that several tests look at: its folder and its metrics."""
    with inside(tmp_path_factory.mktemp("run")) as root:
        return root, train(train_section(), blocks, tiny_model, root)


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "trained/model.safetensors").read_bytes()).hexdigest()


def losses(folder: Path, name: str) -> list[float]:
    with (folder / f"reports/{name}.csv").open(encoding="utf-8") as file:
        return [float(row[name]) for row in csv.DictReader(file)]


def test_the_same_seed_gives_the_same_weights(trained: tuple[Path, Any], tmp_path: Path, blocks: Path, tiny_model: Path) -> None:
    with inside(tmp_path / "same") as same:
        train(train_section(), blocks, tiny_model, same)
    with inside(tmp_path / "other") as other:
        train(train_section(seed=1), blocks, tiny_model, other)
    assert digest(same) == digest(trained[0])
    assert digest(other) != digest(same)


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_does_not_change_the_training(
    trained: tuple[Path, Any], tmp_path: Path, blocks: Path, tiny_model: Path, parts: int
) -> None:
    with inside(tmp_path) as root:
        train(train_section(gradient_accumulation=parts), blocks, tiny_model, root)
    assert losses(root, "train_loss") == pytest.approx(losses(trained[0], "train_loss"), rel=1e-5)
    assert losses(root, "validation_loss") == pytest.approx(losses(trained[0], "validation_loss"), rel=1e-5)


def test_training_lowers_the_loss_and_only_adapters_move(trained: tuple[Path, dict[str, Any]], tiny_model: Path) -> None:
    root, metrics = trained
    assert metrics["best_validation_loss"] < metrics["base_validation_loss"]
    # r · (in + out) for q (64 → 64) and v (64 → 32), two layers
    assert metrics["num_trained_parameters"] == 2 * 4 * ((64 + 64) + (64 + 32))
    before, after = load_model(tiny_model).state_dict(), load_model(root / "trained").state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {f"model.layers.{layer}.self_attn.{name}_proj.weight" for layer in range(2) for name in "qv"}


def test_full_training_moves_every_weight(tmp_path: Path, blocks: Path, tiny_model: Path) -> None:
    with inside(tmp_path) as root:
        metrics = train(train_section(lora=None), blocks, tiny_model, root)
    before, after = load_model(tiny_model).state_dict(), load_model(root / "trained").state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert metrics["num_trained_parameters"] == metrics["num_parameters"] == load_model(tiny_model).num_parameters()
    assert not (root / "trained/adapter").exists()


def test_adapter_and_merged_model_are_the_same_model_in_plain_transformers(trained: tuple[Path, Any], tiny_model: Path) -> None:
    folder = trained[0] / "trained"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer("The history of a language", return_tensors="pt")
    merged = AutoModelForCausalLM.from_pretrained(folder)
    adapted = AutoModelForCausalLM.from_pretrained(folder / "adapter")
    wrapped = PeftModel.from_pretrained(load_model(tiny_model), str(folder / "adapter"))
    with torch.no_grad():
        expected = wrapped(**inputs).logits
        assert torch.allclose(merged(**inputs).logits, expected, atol=1e-5)
        assert torch.allclose(adapted(**inputs).logits, expected, atol=1e-5)
        assert not torch.allclose(load_model(tiny_model)(**inputs).logits, expected, atol=1e-5)


def test_an_adapters_config_is_the_same_in_every_process(tiny_model: Path, tmp_path: Path) -> None:
    targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    export(add_adapters(load_model(tiny_model), Lora(targets=targets), family_of(tiny_model)), tiny_model, tmp_path / "trained", {})
    config = json.loads((tmp_path / "trained/adapter/adapter_config.json").read_text(encoding="utf-8"))
    assert config["target_modules"] == sorted(targets), "PEFT keeps them in a set, whose order hangs on the process"


def test_what_leaves_is_the_best_checkpoint(tmp_path: Path, blocks: Path, tiny_model: Path) -> None:
    # So high a rate that the loss soon gets worse again.
    section = train_section(lora=None, learning_rate=0.03, max_steps=8, schedule="constant_with_warmup", warmup_ratio=0.0)
    with inside(tmp_path) as root:
        metrics = train(section, blocks, tiny_model, root)
    curve = losses(root, "validation_loss")
    assert metrics["best_validation_loss"] == min(curve[1:])
    assert metrics["best_step"] == 2 * (curve[1:].index(min(curve[1:])) + 1) < 8, "the test needs a run whose last step is not its best"
    validation = Blocks.open(blocks, "validation")
    dataset = BlockDataset(validation, 8)
    batch = BlockCollator(family_of(tiny_model), None, validation.end_of_text_id, documents_stop_attention=True)(
        [dataset[i] for i in range(len(dataset))]
    )
    model = load_model(root / "trained")
    model.config.use_cache = False
    nll, num_tokens, *_ = validation_nll(model, batch, validation.end_of_text_id)
    assert nll / num_tokens == pytest.approx(metrics["best_validation_loss"], rel=1e-5)


def test_a_refactoring_reproduces_the_committed_losses(trained: tuple[Path, Any]) -> None:
    committed = json.loads(TRAJECTORY.read_text(encoding="utf-8"))
    assert losses(trained[0], "train_loss") == pytest.approx(committed["train_loss"], rel=1e-4)
    assert losses(trained[0], "validation_loss") == pytest.approx(committed["validation_loss"], rel=1e-4)


def test_metrics_say_how_fast_and_how_much(trained: tuple[Path, dict[str, Any]]) -> None:
    _, metrics = trained
    assert metrics["num_steps"] == 4
    assert metrics["num_tokens"] == 4 * 4 * 64
    assert metrics["tokens_per_second"] == pytest.approx(metrics["num_tokens"] / metrics["train_seconds"])
    assert 0 < metrics["mfu"] < 1
    assert metrics["peak_memory_bytes"] > 2**27


def test_measures_and_keeps_the_last_step_even_off_the_interval(tmp_path: Path, blocks: Path, tiny_model: Path) -> None:
    with inside(tmp_path) as root:
        train(train_section(max_steps=3), blocks, tiny_model, root)
    with (root / "reports/validation_loss.csv").open(encoding="utf-8") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["0", "2", "3"]


def test_stops_early_when_asked(tmp_path: Path, blocks: Path, tiny_model: Path) -> None:
    section = train_section(learning_rate=0.1, lora=None, max_steps=20, early_stopping_patience=1, schedule="constant_with_warmup")
    with inside(tmp_path) as root:
        assert train(section, blocks, tiny_model, root)["num_steps"] < 20


def test_epochs_count_the_blocks(tmp_path: Path, blocks: Path, tiny_model: Path) -> None:
    section = train_section(max_steps=None, num_epochs=0.05, evaluation_interval=50, sampling_interval=50)
    with inside(tmp_path) as root:
        metrics = train(section, blocks, tiny_model, root)
    steps_per_epoch = math.ceil(len(Blocks.open(blocks, "train")) / 4)
    assert metrics["num_steps"] == math.ceil(0.05 * steps_per_epoch)


def test_an_epochs_last_batch_counts_the_blocks_it_holds(tmp_path: Path, blocks: Path, tiny_model: Path) -> None:
    num_blocks = len(Blocks.open(blocks, "train"))
    section = train_section(max_steps=None, num_epochs=1, batch_size=num_blocks - 1, gradient_accumulation=1)
    with inside(tmp_path) as root:
        metrics = train(section, blocks, tiny_model, root)
    assert (metrics["num_steps"], metrics["num_tokens"]) == (2, num_blocks * 64)


def test_several_devices_are_refused(tmp_path: Path, blocks: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    with inside(tmp_path), pytest.raises(ProsemillError, match=r"one device, and here are 2: set CUDA_VISIBLE_DEVICES=0, or train.num"):
        train(train_section(), blocks, tiny_model, tmp_path)


def test_nothing_is_left_of_a_finished_run_but_its_outputs(trained: tuple[Path, Any]) -> None:
    root = trained[0]
    assert [path.suffix for path in (root / ".checkpoints").iterdir()] == [".lock"]
    assert {path.name for path in (root / "trained").iterdir()} >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "adapter",
        "run.json",
    }
    assert {path.name for path in (root / "reports").iterdir()} == {
        "loss_curve.png",
        "train_loss.csv",
        "training_samples.csv",
        "validation_loss.csv",
    }


def test_a_fingerprint_tells_params_data_and_base_apart(blocks: Path, tiny_model: Path, tmp_path: Path) -> None:
    base = fingerprint_of(train_section(), blocks, tiny_model)
    assert base == fingerprint_of(train_section(wandb=True), blocks, tiny_model), "where a run is logged does not change its weights"
    assert base != fingerprint_of(train_section(learning_rate=0.5), blocks, tiny_model)
    other = tmp_path / "blocks"
    other.mkdir()
    (other / "MANIFEST.jsonl").write_text("{}\n", encoding="utf-8")
    assert base != fingerprint_of(train_section(), other, tiny_model)


def test_a_target_that_matches_nothing_is_named_with_those_that_exist(tmp_path: Path, blocks: Path, tiny_model: Path) -> None:
    section = train_section(lora={"targets": ["c_attn"]})
    with inside(tmp_path), pytest.raises(ProsemillError, match=r"train\.lora\.targets.*'c_attn'.*q_proj"):
        train(section, blocks, tiny_model, tmp_path)


def test_a_loss_that_is_no_number_stops_the_training(tmp_path: Path, blocks: Path, tiny_model: Path) -> None:
    section = train_section(lora=None, learning_rate=1e30, max_grad_norm=1e30, warmup_ratio=0.0)
    with inside(tmp_path), pytest.raises(ProsemillError, match=r"training loss is .* at step \d+: lower train\.learning_rate"):
        train(section, blocks, tiny_model, tmp_path)
    assert not (tmp_path / "trained").exists()
