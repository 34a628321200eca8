"""Every experiment composes into params that the stages accept, and params.yaml is the default one."""

import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from prosemill.params import SECTIONS, Lora, as_plain, parse_section
from tests.composing import composed

ROOT = Path(__file__).parents[1]
GROUPS = ("model", "corpus", "method")
CHOICES = {group: sorted(path.stem for path in (ROOT / "experiments" / group).glob("*.yaml")) for group in GROUPS}


def parse(values: dict[str, Any]) -> dict[str, Any]:
    assert set(values) == set(SECTIONS)
    return {name: parse_section(name, section, values[name]) for name, section in SECTIONS.items()}


@pytest.mark.parametrize(("group", "choice"), [(group, choice) for group in GROUPS for choice in CHOICES[group]])
def test_every_file_is_accepted(group: str, choice: str) -> None:
    sections = composed(f"{group}={choice}")
    parse(sections)
    hub = [part for part in (sections["download"]["corpus"], sections["download"]["model"]) if part["source"] == "hub"]
    assert all(re.fullmatch(r"[0-9a-f]{40}", part["revision"]) for part in hub)
    assert all(part.get(name) for part in hub for name in ("license", "attribution"))


def test_every_combination_of_model_and_corpus_is_accepted() -> None:
    models = {choice: composed(f"model={choice}") for choice in CHOICES["model"]}
    corpora = {choice: composed(f"corpus={choice}") for choice in CHOICES["corpus"]}
    for of_model, of_corpus in product(models.values(), corpora.values()):
        parse(of_model | {"download": of_corpus["download"] | {"model": of_model["download"]["model"]}})
    # Composing all of them takes long. One shows that it gives what is put together here, as the groups have no key in common.
    together = models["t5"] | {"download": corpora["wikitext103"]["download"] | {"model": models["t5"]["download"]["model"]}}
    assert composed("model=t5", "corpus=wikitext103") == together


@pytest.mark.parametrize("model", CHOICES["model"])
def test_the_method_wins_over_the_models_own_choice(model: str) -> None:
    methods = {choice: parse(composed(f"model={model}", f"method={choice}"))["train"] for choice in CHOICES["method"]}
    assert methods["full"].lora is None
    assert methods["lora"].lora == methods["qlora"].lora == Lora(r=16, alpha=32, dropout=0.0, targets=None)
    assert {choice: section.base_precision for choice, section in methods.items() if choice != "own"} == {
        "full": "fp32",
        "lora": "bf16",
        "qlora": "nf4",
    }


def test_names_tell_experiments_apart() -> None:
    for group in ("model", "corpus"):
        names = [composed(f"{group}={choice}")["download"][group]["name"] for choice in CHOICES[group] if choice != "t5"]
        assert len(set(names)) == len(names)


def test_params_yaml_is_the_default_experiment() -> None:
    assert yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8")) == composed()


def test_params_yaml_hides_no_default() -> None:
    values = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for name, section in SECTIONS.items():
        assert _as_lists(as_plain(parse_section(name, section, values[name]))) == values[name]


def _as_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_lists(inner) for key, inner in value.items()}
    return [_as_lists(inner) for inner in value] if isinstance(value, list | tuple) else value
