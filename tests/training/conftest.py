"""Blocks of real text for the tiny model, made by the pipeline's own stages."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from prosemill.corpus import build_corpus
from prosemill.params import Download, Group, Tokenize, Train, parse_section
from prosemill.tokens import group_tokens, tokenize_corpus
from prosemill.training import train_model

BLOCK_SIZE = 64


@pytest.fixture(scope="session")
def blocks(tmp_path_factory: pytest.TempPathFactory, prose: list[str], tiny_model: Path) -> Path:
    """A data/blocks folder: blocks of 64 tokens of the help topics, a fifth of them for validation."""
    root = tmp_path_factory.mktemp("blocks")
    (root / "files").mkdir()
    for number, text in enumerate(prose):
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
        tokenize_corpus(Tokenize(), root / "corpus", tiny_model, root / "tokens")
        group_tokens(Group(block_size=BLOCK_SIZE), root / "tokens", tiny_model, root / "blocks")
    return root / "blocks"


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


@pytest.fixture(scope="session", autouse=True)
def tracking_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One tracking store for all runs here: making a new one takes longer than training the tiny model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path_factory.mktemp('tracking')}/mlflow.db")
        patch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
        yield


@contextmanager
def inside(folder: Path) -> Iterator[Path]:
    """Work in a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder
