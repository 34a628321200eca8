"""Blocks of real text for the tiny models, made by the pipeline's own stages, and a base model of every family."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from prosemill.corpus import build_corpus
from prosemill.families import families
from prosemill.params import Download, Group, Tokenize, Train, parse_section
from prosemill.tokens import Blocks, group_tokens, tokenize_corpus
from prosemill.training import build_trainer, throughput, train_model
from prosemill.training.checkpoints import Checkpoints
from prosemill.training.trainer import TokenWeightedTrainer
from tests.conftest import environment
from tests.models import write_model

BLOCK_SIZE = 64


FULL: dict[str, Any] = {"lora": None, "learning_rate": 3e-3}
LORA: dict[str, Any] = {"lora": {"r": 4, "alpha": 8}, "learning_rate": 3e-2}


@pytest.fixture(scope="session")
def blocks(tmp_path_factory: pytest.TempPathFactory, prose: list[str], tiny_model: Path) -> Path:
    """A data/blocks folder: blocks of 64 tokens of the help topics, a fifth of them for validation."""
    return make_blocks(tmp_path_factory.mktemp("blocks"), prose, tiny_model)


@pytest.fixture(scope="session")
def brief_blocks(tmp_path_factory: pytest.TempPathFactory, prose: list[str], tiny_model: Path) -> Path:
    """Blocks of 64 tokens of documents so short that every block holds the end of one."""
    return make_blocks(tmp_path_factory.mktemp("brief-blocks"), [" ".join(text.split()[:8]) for text in prose], tiny_model)


def make_blocks(root: Path, texts: list[str], tokenizer: Path) -> Path:
    """The blocks of these documents, by the stages before training."""
    (root / "files").mkdir()
    for number, text in enumerate(texts):
        (root / "files" / f"{number:03d}.txt").write_text(text, encoding="utf-8")
    values = {
        "corpus": {"source": "files", "name": "topics", "root": "files"},
        "model": {"source": "scratch", "name": "tiny"},
        "num_shards": 2,
    }
    everything = {"near_duplicate_threshold": None, "contamination_words": None}
    section = parse_section("download", Download, {**values, "validation_share": 0.2, "test_share": 0.2, **everything})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        build_corpus(section, root / "corpus")
        tokenize_corpus(Tokenize(), root / "corpus", tokenizer, root / "tokens")
        group_tokens(Group(block_size=BLOCK_SIZE), root / "tokens", tokenizer, root / "blocks")
    return root / "blocks"


@pytest.fixture(scope="session", params=list(families()))
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A tiny random model of each family in turn, with the tokenizer of the blocks."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    write_model(folder, request.param, tiny_model)
    return folder


def train_section(**values: Any) -> Train:
    """A train section that takes seconds on the tiny model."""
    quick = {"max_steps": 4, "batch_size": 4, "evaluation_interval": 2, "sampling_interval": 2, "sample_tokens": 4, "precision": "fp32"}
    lora = {"r": 4, "alpha": 8, "targets": ["q_proj", "v_proj"]}
    return parse_section("train", Train, {**quick, "max_validation_blocks": 8, "sample_prompts": ["The"], "lora": lora, **values})


def train(section: Train, blocks: Path, base: Path, root: Path) -> dict[str, Any]:
    """Train into `root`/trained and return the metrics."""
    metrics = root / "metrics/train.json"
    train_model(section, blocks=blocks, base=base, output=root / "trained", metrics=metrics, reports=root / "reports")
    values: dict[str, Any] = json.loads(metrics.read_text(encoding="utf-8"))
    return values


def trainer_of(section: Train, blocks: Path, base: Path, root: Path, *callbacks: TrainerCallback) -> TokenWeightedTrainer:
    """The Trainer of a run that is not tracked, ready to train."""
    train, validation = Blocks.open(blocks, "train"), Blocks.open(blocks, "validation")
    return build_trainer(section, train, validation, base, Checkpoints(root / "x"), list(callbacks))


@pytest.fixture(scope="session", autouse=True)
def tracked(tracking_store: dict[str, str]) -> Iterator[None]:
    """All runs here go into one tracking store."""
    with environment(tracking_store):
        yield


@pytest.fixture(autouse=True)
def quick_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every training measures the machine: on smaller matrices here, as bf16 without hardware takes a minute for the usual ones."""
    monkeypatch.setattr(throughput, "MATRIX_SIZE", 512)
    monkeypatch.setattr(throughput, "MEASURED_SECONDS", 0.05)


@contextmanager
def inside(folder: Path) -> Iterator[Path]:
    """Work in a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder
