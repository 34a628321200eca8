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


def test_t5_goes_through_every_stage(own_clone: Clone) -> None:
    metrics = evaluated(own_clone, "download.model.family=t5", "download.model.name=t5-tiny")
    assert metrics["protocol"]["direction"] == "prefix → continuation"
    assert metrics["trained"]["bits_per_byte"] < metrics["base"]["bits_per_byte"]
    assert "prefix → continuation" in own_clone.run("prosemill", "compare")


def test_a_fifth_family_is_one_file_and_one_experiment(own_clone: Clone) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for name, language in {"prosemill/families/qwen2.py": "python", "experiments/model/qwen2-tiny.yaml": "yaml"}.items():
        (block,) = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
        (own_clone.folder / name).write_text(block, encoding="utf-8")
    metrics = evaluated(own_clone, "model=qwen2-tiny", "corpus=python-300")
    assert metrics["trained"]["bits_per_byte"] < metrics["base"]["bits_per_byte"]
    config = json.loads((own_clone.folder / "models/trained/config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "qwen2"
