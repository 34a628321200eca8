"""Families beside the default one go through the real stages: T5, and a fifth that is added as CONTRIBUTING.md says."""

import json
import re
from typing import Any

from tests.end_to_end.conftest import ROOT, Clone


def evaluated(clone: Clone, *overrides: str) -> dict[str, Any]:
    """The evaluation of an experiment, run in the clone."""
    clone.compose(*overrides)
    assert clone.repro()[-1] == "evaluate"
    values: dict[str, Any] = json.loads((clone.folder / "metrics/evaluation.json").read_text(encoding="utf-8"))
    return values


def test_t5_goes_through_every_stage(clone: Clone) -> None:
    try:
        metrics = evaluated(clone, "download.model.family=t5", "download.model.name=t5-tiny")
        assert metrics["protocol"]["direction"] == "prefix → continuation"
        assert metrics["trained"]["bits_per_byte"] < metrics["base"]["bits_per_byte"]
        assert "prefix → continuation" in clone.run("prosemill", "compare")
    finally:
        clone.compose()
        clone.repro()


def test_a_fifth_family_is_one_file_and_one_experiment(clone: Clone) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    added = {"prosemill/families/qwen2.py": "python", "experiments/model/qwen2-tiny.yaml": "yaml"}
    try:
        for name, language in added.items():
            (block,) = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
            (clone.folder / name).write_text(block, encoding="utf-8")
        metrics = evaluated(clone, "model=qwen2-tiny", "corpus=python-300")
        assert metrics["trained"]["bits_per_byte"] < metrics["base"]["bits_per_byte"]
        config = json.loads((clone.folder / "models/trained/config.json").read_text(encoding="utf-8"))
        assert config["model_type"] == "qwen2"
    finally:
        for name in added:
            (clone.folder / name).unlink(missing_ok=True)
        clone.compose()
        clone.repro()
