"""Every experiment composes into params that the stages accept, and params.yaml is the default one."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.utils.hydra import compose_and_dump

from prosemill.params import SECTIONS, as_plain, parse_section

ROOT = Path(__file__).parents[1]
MODELS = sorted(path.stem for path in (ROOT / "experiments/model").glob("*.yaml"))
CORPORA = sorted(path.stem for path in (ROOT / "experiments/corpus").glob("*.yaml"))


def compose(folder: Path, *overrides: str) -> dict[str, Any]:
    compose_and_dump(folder / "params.yaml", str(ROOT / "experiments"), None, "default", str(ROOT / ".dvc/plugins"), list(overrides))
    values: dict[str, Any] = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    return values


@pytest.mark.parametrize(("model", "corpus"), product(MODELS, CORPORA))
def test_every_combination_is_accepted(tmp_path: Path, model: str, corpus: str) -> None:
    values = compose(tmp_path, f"model={model}", f"corpus={corpus}")
    assert set(values) == set(SECTIONS)
    for name, section in SECTIONS.items():
        parse_section(name, section, values[name])


def test_params_yaml_is_the_default_experiment(tmp_path: Path) -> None:
    assert yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8")) == compose(tmp_path)


def test_params_yaml_hides_no_default() -> None:
    values = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for name, section in SECTIONS.items():
        assert _as_lists(as_plain(parse_section(name, section, values[name]))) == values[name]


def _as_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_lists(inner) for key, inner in value.items()}
    return [_as_lists(inner) for inner in value] if isinstance(value, list | tuple) else value
