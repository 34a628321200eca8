"""Params are checked when read: whatever is wrong is named by its full key, with the remedy, in one line."""

from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

from prosemill.errors import ProsemillError
from prosemill.params import SECTIONS, Download, Group, Train, parse_section, read_section
from prosemill.params_help import keys_of

ROOT = Path(__file__).parents[1]
SCRATCH = {"source": "scratch", "name": "tiny"}
PYTHON = {"source": "python-source", "name": "python"}
WHEEL = {
    "source": "wheel",
    "name": "articles",
    "requirement": "a==1",
    "sha256": "0" * 64,
    "member": "a.json",
    "license": "x",
    "attribution": "y",
}
HUB = {"source": "hub", "name": "model", "repository": "a/b", "revision": "main"}


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("group", {"block_siz": 8}, r"unknown key `group\.block_siz`: did you mean `block_size`\?"),
        ("group", {"colour": 8}, r"unknown key `group\.colour`: remove it"),
        ("group", {"block_size": "many"}, r"`group\.block_size`: .*integer.*'many'"),
        ("group", {"block_size": 4}, r"`group\.block_size`: .*greater than or equal to 8 \(given 4\)"),
        ("train", {"max_steps": 1, "num_epochs": 1}, r"`train`: give either num_epochs or max_steps"),
        ("train", {}, r"`train`: give either num_epochs or max_steps"),
        ("train", {"max_steps": 1, "batch_size": 8, "gradient_accumulation": 3}, r"gradient_accumulation 3 does not divide batch_size 8"),
        (
            "train",
            {"max_steps": 1, "batch_size": 8, "gradient_accumulation": 4, "num_processes": 3},
            r"`train`: num_processes 3 does not divide gradient_accumulation 4, .*: set gradient_accumulation to a multiple of it",
        ),
        ("train", {"max_steps": 1, "evaluation_interval": 20, "sampling_interval": 30}, r"sampling_interval 30 is not a multiple"),
        ("train", {"max_steps": 1, "lora": {"rank": 4}}, r"unknown key `train\.lora\.rank`"),
        ("train", {"max_steps": 1, "precision": "int8"}, r"`train\.precision`: .*'bf16'.*\(given 'int8'\)"),
        ("train", {"max_steps": 1, "learning_rate": float("nan")}, r"`train\.learning_rate`"),
        ("train", {"max_steps": 1, "adamw_learning_rate": 0.1}, r"adamw_learning_rate is for what muon leaves to AdamW"),
        ("train", {"max_steps": 1, "base_precision": "nf4"}, r"base_precision nf4 is for the frozen weights under lora: set lora"),
        ("download", {"corpus": PYTHON}, r"`download\.model` is missing"),
        ("download", {"corpus": {"source": "ftp"}, "model": SCRATCH}, r"`download\.corpus`: .*'ftp'.*'wheel', 'files'"),
        ("download", {"corpus": {**WHEEL, "sha256": "abc"}, "model": SCRATCH}, r"`download\.corpus\.sha256`"),
        ("download", {"corpus": {**WHEEL, "requirement": "a>=1"}, "model": SCRATCH}, r"`download\.corpus\.requirement`"),
        ("download", {"corpus": {**PYTHON, "name": "two words"}, "model": SCRATCH}, r"`download\.corpus\.name`: .*given 'two words'"),
        ("download", {"corpus": {**PYTHON, "root": "x"}, "model": SCRATCH}, r"unknown key `download\.corpus\.root`"),
        ("download", {"corpus": PYTHON, "model": HUB}, r"model\.revision`"),
        ("download", {"corpus": PYTHON, "model": {**SCRATCH, "hidden_size": 65}}, r"hidden_size 65 is not a multiple of num_heads 4"),
        ("download", {"corpus": PYTHON, "model": SCRATCH, "test_share": 0.6, "validation_share": 0.5}, r"leave nothing for training"),
        ("evaluate", {"num_prompts": 5, "num_shown": 6}, r"num_shown 6 is more than num_prompts 5"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(name: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ProsemillError, match=message) as caught:
        parse_section(name, SECTIONS[name], values)
    assert "\n" not in str(caught.value)


def test_numbers_that_yaml_reads_as_text_are_numbers(workspace: Path) -> None:
    (workspace / "params.yaml").write_text("train: {max_steps: 1, learning_rate: 1e-3}\n", encoding="utf-8")
    assert read_section("train", Train).learning_rate == 0.001


def test_documents_stop_attention_unless_told_otherwise() -> None:
    assert parse_section("train", Train, {"max_steps": 1}).documents_stop_attention is True
    assert read_section("train", Train, ROOT / "params.yaml").documents_stop_attention is True


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"params\.yaml is missing: run this in the repository's root"),
        ("train: [", r"params\.yaml is not valid YAML"),
        ("train: {max_steps: 1}", r"params\.yaml has no section `group`"),
        ("group: 3", r"params\.yaml has no section `group`"),
    ],
)
def test_a_broken_file_is_one_line(workspace: Path, text: str | None, message: str) -> None:
    if text is not None:
        (workspace / "params.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ProsemillError, match=message):
        read_section("group", Group)


def test_a_section_cannot_be_changed() -> None:
    section = parse_section("group", Group, {})
    with pytest.raises(FrozenInstanceError):
        section.block_size = 9  # type: ignore[misc]


def test_every_key_has_a_help_line() -> None:
    keys = [key for section in SECTIONS for key in keys_of(section)]
    assert len(keys) > 60
    assert all(key.help.endswith(".") and key.kind for key in keys)
    assert any(key.name == "train.sample_prompts" and key.default == "[The history of, In physics,, The city is known for]" for key in keys)


def test_sources_are_told_apart() -> None:
    section = parse_section("download", Download, {"corpus": WHEEL, "model": SCRATCH})
    assert type(section.corpus).__name__ == "WheelCorpus"
    assert type(section.model).__name__ == "ScratchModel"
