"""The pipeline as dvc.yaml declares it."""

from typing import Any

import yaml

from tests.end_to_end.conftest import ROOT

STAGES = ("download", "tokenize", "group", "train", "evaluate")
PIPELINE: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


def outputs(stage: str) -> set[str]:
    """Every file or folder that dvc.yaml says the stage writes."""
    declared = [entry for kind in ("outs", "metrics", "plots") for entry in PIPELINE[stage].get(kind, [])]
    return {next(iter(entry)) if isinstance(entry, dict) else entry for entry in declared}
