"""Families beside the default one go through the stages' own code: T5, and a fifth that is added as CONTRIBUTING.md says."""

import importlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.hydra import compose_and_dump

from prosemill import families
from tests.composing import ROOT, composed_text
from tests.end_to_end.pipeline import STAGES

SMALL = ("corpus=python-300", "evaluate.max_documents=2")


@pytest.fixture(autouse=True)
def tracked(tracking_store: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in tracking_store.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def fifth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The family of CONTRIBUTING.md among the others; the params of its experiment."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (code,), (experiment,) = (re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL) for language in ("python", "yaml"))
    folder, experiments = tmp_path / "families", tmp_path / "experiments"
    folder.mkdir()
    (folder / "qwen2.py").write_text(code, encoding="utf-8")
    shutil.copytree(ROOT / "experiments", experiments)
    (experiments / "model/qwen2-tiny.yaml").write_text(experiment, encoding="utf-8")
    compose_and_dump(tmp_path / "params", str(experiments), None, "default", str(ROOT / ".dvc/plugins"), ["model=qwen2-tiny", *SMALL])

    monkeypatch.setattr(families, "__path__", [*families.__path__, str(folder)])
    families.families.cache_clear()
    yield (tmp_path / "params").read_text(encoding="utf-8")
    families.families.cache_clear()


def run_stages(params: str) -> dict[str, Any]:
    """Run all stages in the current folder, as DVC would, and return the evaluation."""
    Path("params.yaml").write_text(params, encoding="utf-8")
    for stage in STAGES:
        importlib.import_module(f"stages.{stage}").main()
    values: dict[str, Any] = json.loads(Path("metrics/evaluation.json").read_text(encoding="utf-8"))
    return values


def test_t5_goes_through_every_stage(workspace: Path) -> None:
    metrics = run_stages(composed_text("model=tiny", *SMALL, "download.model.family=t5", "download.model.name=t5-tiny"))
    assert metrics["protocol"]["direction"] == "prefix → continuation"
    assert metrics["trained"]["bits_per_byte"] < metrics["base"]["bits_per_byte"]


def test_a_fifth_family_is_one_file_and_one_experiment(workspace: Path, fifth: str) -> None:
    metrics = run_stages(fifth)
    assert metrics["trained"]["bits_per_byte"] < metrics["base"]["bits_per_byte"]
    assert json.loads(Path("models/trained/config.json").read_text(encoding="utf-8"))["model_type"] == "qwen2"
