"""What cannot be served is refused before anything is loaded, and in one line wherever BentoML asks before it starts its worker."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from prosemill.errors import ProsemillError
from prosemill.registry.champion import ChampionOfRegistry
from prosemill.serving.settings import ServiceSettings
from prosemill.serving.source import check_source
from tests.generation.models import HAS_VLLM
from tests.ports import free_port
from tests.serving.process import is_ready, refusal, starting
from tests.serving.real import own_environment, put_service
from tests.waiting import until

without_vllm = pytest.mark.skipif(HAS_VLLM, reason="the extra `vllm` is installed")


def test_a_registry_without_a_champion(tmp_path: Path, empty_store: Path) -> None:
    put_service(tmp_path, empty_store)
    told = refusal(folder=tmp_path, environment=own_environment(tmp_path))
    assert "prosemill has no champion to serve: `prosemill register` and `prosemill promote` make one" in told
    assert len(told.strip().splitlines()) == 1


def startup_error(champion: Path, monkeypatch: pytest.MonkeyPatch, **variables: str) -> str:
    """The one line that ends `bentoml serve`, by the function that it calls before it starts its worker."""
    monkeypatch.chdir(champion)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ProsemillError) as found:
        check_source(ChampionOfRegistry(), ServiceSettings.read())
    assert "\n" not in str(found.value)
    return str(found.value)


def empty(base: Path, _: Path) -> None:
    base.mkdir()


def foreign(base: Path, tiny_model: Path) -> None:
    shutil.copytree(tiny_model, base)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (base / "config.json").write_text(json.dumps(config | {"model_type": "bert"}), encoding="utf-8")


def with_code(base: Path, tiny_model: Path) -> None:
    shutil.copytree(tiny_model, base)
    config = json.loads((base / "tokenizer_config.json").read_text(encoding="utf-8"))
    named = {"auto_map": {"AutoTokenizer": [None, "own.Own"]}}
    (base / "tokenizer_config.json").write_text(json.dumps(config | named), encoding="utf-8")


def without_weights(base: Path, tiny_model: Path) -> None:
    shutil.copytree(tiny_model, base, ignore=shutil.ignore_patterns("*.safetensors"))


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (empty, " has no config.json and no tokenizer.json and no *.safetensors: name a folder with a model"),
        (foreign, " is of the family 'bert', which is not supported"),
        (with_code, "/tokenizer_config.json names code of its own (auto_map), which Prosemill never runs"),
        (without_weights, " has no *.safetensors: name a folder with a model"),
    ],
)
def test_a_base_model_that_is_none(
    champion: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path, Path], None], line: str
) -> None:
    make(tmp_path / "base", tiny_model)
    assert f"{tmp_path / 'base'}{line}" in startup_error(champion, monkeypatch, PROSEMILL_BASE=str(tmp_path / "base"))


def test_a_champion_whose_kept_evaluation_was_altered(champion: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (evaluation,) = (champion / ".prosemill/mlflow").rglob("lineage/*/evaluation.json")
    content = evaluation.read_bytes()
    evaluation.write_bytes(content + b"\n")
    try:
        line = startup_error(champion, monkeypatch)
    finally:
        evaluation.write_bytes(content)
    assert "evaluation.json of version 1 is not what was registered" in line
    assert "or set PROSEMILL_PRECISION" in line


@pytest.mark.parametrize(
    ("precision", "line"),
    [
        ("int8", "vLLM does not hold weights in int8 here: set PROSEMILL_PRECISION to bf16 or fp32, or unset PROSEMILL_ENGINE"),
        pytest.param("auto", "which is not installed: run `uv pip install -e '.[vllm]'`, or unset PROSEMILL_ENGINE", marks=without_vllm),
    ],
)
def test_an_engine_that_is_not_to_be_had(champion: Path, monkeypatch: pytest.MonkeyPatch, precision: str, line: str) -> None:
    assert line in startup_error(champion, monkeypatch, PROSEMILL_ENGINE="vllm", PROSEMILL_PRECISION=precision)


def test_a_door_that_bentomls_own_settings_open(champion: Path) -> None:
    opened = 'services.prosemill.http.host="0.0.0.0"'
    told = refusal(folder=champion, environment=own_environment(champion, BENTOML_CONFIG_OPTIONS=opened))
    assert "it must not listen on 0.0.0.0" in told.strip().splitlines()[-1]


def test_a_door_that_a_program_opens(champion: Path, tmp_path: Path) -> None:
    port, log, refused = free_port(), tmp_path / "log", "Application startup failed"
    program = f"import bentoml; bentoml.serve('service:Service', host='0.0.0.0', port={port}, blocking=True)"
    with starting([sys.executable, "-c", program], folder=champion, environment=own_environment(champion), log=log) as process:
        ends = "it is refused, is ready or has ended"
        until(lambda: refused in log.read_text() or is_ready(port) or process.poll() is not None, ends)
    assert refused in log.read_text(), log.read_text()
    assert "it must not listen on 0.0.0.0" in log.read_text()
