"""Experiments of this project, composed as by `dvc exp run`; each is composed once in a process, as Hydra takes a third of a second."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from dvc.utils.hydra import compose_and_dump

ROOT = Path(__file__).parents[1]


@cache
def composed_text(*overrides: str) -> str:
    """Text of params.yaml for these overrides."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        compose_and_dump(path, str(ROOT / "experiments"), None, "default", str(ROOT / ".dvc/plugins"), list(overrides))
        return path.read_text(encoding="utf-8")


def composed(*overrides: str) -> dict[str, Any]:
    """Values of params.yaml for these overrides, the caller's own to change."""
    values: dict[str, Any] = yaml.safe_load(composed_text(*overrides))
    return values
