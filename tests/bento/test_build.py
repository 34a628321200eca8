"""A Bento of a registered version: built without a network, whole or not there, and served where there is nothing else."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from bentoml._internal.configuration.containers import BentoMLContainer

from prosemill.bento.build import CODE, Bento, build
from prosemill.bento.packed import Packed
from prosemill.dvc_lock import digest_of
from prosemill.errors import ProsemillError
from prosemill.generation.sampling import Settings
from prosemill.generation.writer import Writer
from prosemill.registry import packaging
from prosemill.registry.champion import ChampionOfRegistry
from prosemill.registry.store import Registry
from prosemill.serving.champion import load
from prosemill.serving.settings import ServiceSettings
from tests.bento.environments import installed_by, make_environment
from tests.ports import free_port
from tests.registry.workspace import Workspace
from tests.serving.process import refusal, serving
from tests.serving.real import make_champion
from tests.test_telemetry import SPY, Proxy
from tests.waiting import LIMIT, until

PROGRAM = str(Path(sys.executable).with_name("prosemill"))
EVERYWHERE = "0.0.0.0"  # noqa: S104
COSTS = {"cost_bf16": 0.0001, "cost_int8": 0.0002, "cost_int4": 0.2}
BODY: dict[str, Any] = {"prompt": "The history of", "max_new_tokens": 40, "temperature": 0}
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")

WHERE_FROM = "import sys, bentoml; bentoml.load(sys.argv[1]); import prosemill.serving; print(prosemill.serving.__file__)"


@dataclass(frozen=True)
class Shop:
    """A workspace with a champion, and a store for Bentos."""

    workspace: Workspace
    home: Path
    spy: Path
    proxy: Proxy

    @property
    def environment(self) -> dict[str, str]:
        """Of every process; each writes down whom it calls outside this machine, and native code, as uv, has to ask the proxy."""
        inherited = {name: value for name, value in os.environ.items() if name not in ("MLFLOW_TRACKING_URI", "PYTHONPATH")}
        inherited["CUDA_VISIBLE_DEVICES"] = ""  # what the processor holds best is asked
        inherited |= dict.fromkeys(PROXIES, f"http://127.0.0.1:{self.proxy.server_address[1]}")
        inherited |= dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost")
        return inherited | {"BENTOML_HOME": str(self.home), "PYTHONPATH": str(self.spy), "SPY_REPORT": str(self.spy / "report")}

    @property
    def called(self) -> list[str]:
        """Whom any of them has tried to reach outside this machine."""
        report = self.spy / "report"
        return [*(report.read_text(encoding="utf-8").splitlines() if report.exists() else []), *self.proxy.asked]

    def run(self, *command: str, fails: bool = False) -> str:
        """What a command in the workspace prints."""
        ended = subprocess.run(
            [sys.executable, *command], cwd=self.workspace.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        assert (ended.returncode != 0) == fails, ended.stderr
        return ended.stderr if fails else ended.stdout

    def package(self, *arguments: str) -> Path:
        """The folder of the Bento that `prosemill package` says it has built."""
        (folder,) = re.findall(r" MB in (.*)", self.run(PROGRAM, "package", *arguments))
        return Path(folder)

    @property
    def bentos(self) -> set[Path]:
        """What is in the store."""
        return {path for path in self.home.glob("bentos/prosemill/*") if path.is_dir()}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, prose: list[str], empty_store: Path) -> Iterator[Shop]:
    """The shop, whose champion's evaluation says that int8 is the fastest of the precisions that cost little."""
    folder = tmp_path_factory.mktemp("shop") / "workspace"
    workspace = make_champion(folder, tiny_model, [text[:400] for text in prose[:6]], empty_store, costs=COSTS)
    spy = tmp_path_factory.mktemp("spy")
    (spy / "sitecustomize.py").write_text(SPY, encoding="utf-8")
    with Proxy() as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        yield Shop(workspace, tmp_path_factory.mktemp("store") / ".bentoml", spy, proxy)
        proxy.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def bento(shop: Shop) -> Path:
    """Its Bento, which an answer's id asks for as well."""
    return shop.package(f"answer-v1-{'0' * 24}")


@pytest.fixture(scope="module")
def elsewhere(bento: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter that finds what the Bento asks for, and nothing else."""
    python = make_environment(tmp_path_factory.mktemp("elsewhere") / "environment", bento / "env/python/requirements.txt")
    for name in ("prosemill", "mlflow", "prefect", "dvc", "datasets", "accelerate", "sqlalchemy"):
        assert subprocess.run([python, "-c", f"import {name}"], cwd=python.parent, capture_output=True, check=False).returncode != 0, name
    return str(python)


@pytest.fixture
def build_here(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Bento]]:
    """Builds the champion's Bento in this process, which is faster."""
    monkeypatch.chdir(shop.workspace.folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with BentoMLContainer.bentoml_home.patch(str(shop.home)):
        yield lambda **options: build(Registry.open(), Registry.open().version(1), **options)


def ask(port: int) -> dict[str, Any]:
    answer: dict[str, Any] = requests.post(f"http://127.0.0.1:{port}/generate", json=BODY, timeout=LIMIT).json()
    return answer


def test_a_bento_is_served_from_an_empty_folder_where_nothing_else_is_installed(
    shop: Shop, bento: Path, elsewhere: str, tmp_path: Path
) -> None:
    with serving(port := free_port(), folder=shop.workspace.folder, environment=shop.environment):
        expected = ask(port)
        facts = requests.get(f"http://127.0.0.1:{port}/v1/models", timeout=LIMIT).json()
    with serving(port := free_port(), f"prosemill:{bento.name}", folder=tmp_path, environment=shop.environment, python=elsewhere):
        found = ask(port)
        assert requests.get(f"http://127.0.0.1:{port}/v1/models", timeout=LIMIT).json() == facts
    assert found["generated_text"] == expected["generated_text"]
    assert len(set(found["generated_text"])) > 1
    assert found["model_version"] == facts["data"][0]["version"] == 1
    assert facts["data"][0]["git_commit"] == shop.workspace.git("rev-parse", "HEAD")
    lineage = shop.run(PROGRAM, "lineage", found["id"])
    assert facts["data"][0]["git_commit"][:12] in lineage
    assert facts["data"][0]["package_digest"][:12] in lineage
    assert list(tmp_path.iterdir()) == []
    assert shop.called == []


def test_an_unpacked_bento_is_served_and_an_altered_one_refused_in_one_line(
    shop: Shop, bento: Path, elsewhere: str, tmp_path: Path
) -> None:
    variables = shop.environment | {"BENTOML_HOME": str(tmp_path / "home"), "PROSEMILL_PRECISION": "fp32"}
    shop.run("-m", "bentoml", "export", f"prosemill:{bento.name}", f"{tmp_path}/bento.tar.gz")
    unpacked = tmp_path / "unpacked"
    shutil.unpack_archive(tmp_path / "bento.tar.gz", unpacked)
    with serving(port := free_port(), ".", folder=unpacked, environment=variables, python=elsewhere):
        assert ask(port)["model_version"] == 1
    open_door = refusal(".", "--host", EVERYWHERE, folder=unpacked, environment=variables, python=elsewhere)
    assert "must not listen on 0.0.0.0" in open_door
    weights = unpacked / "src/version/model/model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (line,) = refusal(".", folder=unpacked, environment=variables, python=elsewhere).strip().splitlines()
    assert "was altered after version 1 was packaged" in line


def test_the_bentos_own_code_runs_where_another_is_installed(shop: Shop, bento: Path) -> None:
    output = shop.run("-c", WHERE_FROM, f"prosemill:{bento.name}")
    assert Path(output.splitlines()[-1]).is_relative_to(bento)


def test_a_bento_holds_what_it_needs_and_exact_requirements(bento: Path) -> None:
    held = {path.relative_to(bento / "src/prosemill").as_posix() for path in (bento / "src/prosemill").rglob("*.py")}
    assert {name.partition("/")[0] for name in held} == {name.partition("/")[0] for name in CODE}
    requirements = (bento / "env/python/requirements.txt").read_text(encoding="utf-8").split()
    assert all(re.fullmatch(r"[a-z-]+==[\w.]+", line) for line in requirements), requirements
    assert not {"mlflow", "prefect", "dvc", "datasets"} & installed_by(requirements)
    assert json.loads((bento / "src/version/evaluation.json").read_text(encoding="utf-8"))["serving"] == COSTS
    assert not (bento / "src/version/base").exists()


def sources(bento: Path) -> dict[Path, bytes]:
    """What it is made of, by its place."""
    return {path: path.read_bytes() for part in ("src", "env/python") for path in (bento / part).rglob("*") if path.is_file()}


def test_the_same_version_is_the_same_bento_which_is_left_as_it_is(build_here: Callable[..., Bento], bento: Path) -> None:
    written = (bento / "bento.yaml").stat().st_mtime_ns
    compiled = bento / "src/prosemill/__pycache__/errors.pyc"
    compiled.parent.mkdir(exist_ok=True)
    compiled.write_bytes(b"of whoever served it, or of whoever altered it")
    assert build_here().folder == bento
    assert (bento / "bento.yaml").stat().st_mtime_ns == written
    assert not compiled.exists()


@contextmanager
def altered(path: Path) -> Iterator[None]:
    """Have a file end in another line while the block runs, or be there with that alone."""
    before = path.read_bytes() if path.exists() else None
    path.write_bytes((before or b"") + b"raise SystemExit\n")
    try:
        yield
    finally:
        path.unlink() if before is None else path.write_bytes(before)


@pytest.mark.parametrize("name", ["src/version/model/config.json", "src/service.py", "src/torch.py", "env/python/requirements.txt"])
def test_an_altered_bento_is_seen(build_here: Callable[..., Bento], bento: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def build_no_other(*_: object) -> Path:
        raise ProsemillError("it would be built anew")

    monkeypatch.setattr("prosemill.bento.build._build", build_no_other)
    assert build_here().folder == bento
    with altered(bento / name), pytest.raises(ProsemillError, match="it would be built anew"):
        build_here()


def test_an_altered_bento_is_built_anew(build_here: Callable[..., Bento], bento: Path) -> None:
    before = sources(bento)
    with altered(bento / "src/prosemill/serving/app.py"):
        assert build_here().folder == bento
        assert sources(bento) == before


def test_with_the_base_model_it_holds_that_of_the_version_alone(build_here: Callable[..., Bento], shop: Shop, bento: Path) -> None:
    base = shop.workspace.folder / "models/base"
    found = build_here(with_base=True).folder
    assert found != bento
    assert (found / "src/version/base/model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()
    with (
        altered(base / "config.json"),
        pytest.raises(ProsemillError, match="models/base is not the base model of version 1"),
    ):
        build_here(with_base=True)


def test_with_the_base_model_both_are_served(build_here: Callable[..., Bento], shop: Shop) -> None:
    packed = Packed(build_here(with_base=True).folder / "src/version").find()
    champion = load(packed, ServiceSettings(num_rows=1, precision="fp32"))
    assert champion.base is not None
    settings = Settings(max_new_tokens=40, temperature=1.0, seed=1)
    texts = ["".join(writer.answer("The history of", settings)) for writer in (champion.writer, champion.base)]
    champion.close()
    for text, folder in zip(texts, ("models/trained", "models/base"), strict=True):
        with Writer.open(shop.workspace.folder / folder, precision="fp32", num_rows=1) as writer:
            assert "".join(writer.answer("The history of", settings)) == text
    assert texts[0] != texts[1]


def test_registry_and_bento_are_served_in_what_the_evaluation_says_costs_little(
    build_here: Callable[..., Bento], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for candidate in (ChampionOfRegistry().find(), Packed(build_here().folder / "src/version").find()):
        champion = load(candidate, ServiceSettings(num_rows=1))
        champion.close()
        assert champion.precision == "int8"


def test_a_base_model_that_another_takes_the_place_of_is_held_as_it_was(
    build_here: Callable[..., Bento], shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = shop.workspace.folder / "models/base/config.json"
    before = config.read_bytes()
    with ExitStack() as stack:

        def digest_before_a_run(path: Path) -> str | None:
            found = digest_of(path)
            stack.enter_context(altered(config))
            return found

        monkeypatch.setattr("prosemill.bento.build.digest_of", digest_before_a_run)
        found = build_here(with_base=True)
        assert config.read_bytes() != before
    assert (found.folder / "src/version/base/config.json").read_bytes() == before


def test_without_a_base_model_here_none_is_held(build_here: Callable[..., Bento], shop: Shop) -> None:
    base = shop.workspace.folder / "models/base"
    base.rename(base.with_name("elsewhere"))
    try:
        with pytest.raises(ProsemillError, match="models/base is not the base model of version 1"):
            build_here(with_base=True)
    finally:
        base.with_name("elsewhere").rename(base)


def test_what_bentoml_cannot_build_is_one_line_and_leaves_nothing(
    build_here: Callable[..., Bento], shop: Shop, bento: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy_broken(names: Iterable[str], folder: Path) -> None:
        packaging.copy_code(names, folder)
        (folder / "prosemill/serving/app.py").write_text("import nowhere", encoding="utf-8")

    before = shop.bentos
    monkeypatch.setattr("prosemill.bento.build.copy_code", copy_broken)
    with pytest.raises(
        ProsemillError, match=r"BentoML cannot build 1-[0-9a-f]{12} \((?s:.*)No module named 'nowhere'(?s:.*)\): nothing is packaged"
    ):
        build_here()
    assert shop.bentos == before
    assert not (shop.home / "tmp/prosemill-package").exists()


@pytest.mark.parametrize(
    ("version", "line"), [("7", "version 7 of prosemill is not in the registry"), ("latest", "latest is neither a version's number nor")]
)
def test_a_version_that_is_not_there_is_one_line(shop: Shop, version: str, line: str) -> None:
    (error,) = shop.run(PROGRAM, "package", version, fails=True).splitlines()
    assert error.startswith(f"error: {line}")


def test_a_kill_leaves_no_half_bento_and_the_next_call_mends_the_rest(shop: Shop, bento: Path) -> None:
    shutil.rmtree(bento)
    before, built = shop.bentos, shop.home / "tmp/prosemill-package/home/bentos/prosemill"
    command = [sys.executable, PROGRAM, "package"]
    with subprocess.Popen(command, cwd=shop.workspace.folder, env=shop.environment) as process:
        until(lambda: built.exists() or process.poll() is not None, "BentoML writes its Bento")
        process.send_signal(signal.SIGKILL)
    assert shop.bentos == before
    assert f"prosemill:{bento.name}" not in shop.run("-m", "bentoml", "list")
    bento.mkdir()  # as a kill just before the Bento takes its place
    assert shop.package() == bento
    assert (bento / "bento.yaml").is_file()
    assert not (shop.home / "tmp/prosemill-package").exists()
