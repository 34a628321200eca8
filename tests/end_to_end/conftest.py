"""A finished workspace: a clone of this repository with the small experiment as its default, whose pipeline ran as a flow.

It is made once for the whole run of the suite. A test that needs one gets a copy, in which it may do what it likes.
"""

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from dvc.utils.hydra import compose_and_dump

from tests.conftest import make_once
from tests.test_telemetry import SPY

ROOT = Path(__file__).parents[2]
SMALL = {"model: smollm2": "model: tiny", "corpus: vital-articles": "corpus: python-300"}


class Clone:
    """A clone and the ways to run a command in it."""

    def __init__(self, folder: Path, spy: Path | None = None) -> None:
        self.folder = folder
        self.environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "MLFLOW_TRACKING_URI")}
        self.environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        identity = {f"GIT_{role}_{what}": f"{what}@example.org" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        self.environment |= identity
        self.environment["BENTOML_HOME"] = str(folder / ".prosemill/bentoml")
        if spy is not None:
            (spy / "sitecustomize.py").write_text(SPY, encoding="utf-8")
            self.environment |= {"PYTHONPATH": str(spy), "SPY_REPORT": str(spy / "report")}

    def run(self, *command: str, fails: bool = False) -> str:
        """Run a command to its end and return what it printed; the test fails if it does not end as expected."""
        finished = subprocess.run(
            command, cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        assert (finished.returncode != 0) == fails, finished.stdout
        return finished.stdout

    def repro(self, *arguments: str) -> list[str]:
        """Run `dvc repro` and return the names of the stages that it ran."""
        lines = self.run("dvc", "repro", *arguments).splitlines()
        return [line.split("'")[1] for line in lines if line.startswith("Running stage '")]

    def compose(self, *overrides: str) -> None:
        """Write params.yaml as `dvc exp run -S …` would."""
        experiments, plugins = self.folder / "experiments", self.folder / ".dvc/plugins"
        compose_and_dump(self.folder / "params.yaml", str(experiments), None, "default", str(plugins), list(overrides))


def make_clone(folder: Path, spy: Path) -> Clone:
    """Clone the repository, uncommitted changes of tracked files included, and make the small experiment its default."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    changes = subprocess.run(["git", "diff", "HEAD", "--binary"], cwd=ROOT, check=True, capture_output=True).stdout
    if changes:
        subprocess.run(["git", "apply"], cwd=folder, input=changes, check=True)
    clone = Clone(folder, spy)
    default = folder / "experiments/default.yaml"
    text = default.read_text(encoding="utf-8")
    for usual, small in SMALL.items():
        assert usual in text
        text = text.replace(usual, small)
    default.write_text(text, encoding="utf-8")
    clone.compose()
    clone.run("git", "commit", "--quiet", "--all", "--message", "Make the small experiment the default")
    return clone


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which the pipeline has run once, as a flow: trained, evaluated, registered as version 1 and held against the gate.

    It holds `clone`, `output` with what the flow printed, and `left`, which is empty unless a process of the flow outlived it.
    """
    return make_once(tmp_path_factory, "finished", finish)


def finish(folder: Path) -> None:
    """Run the flow, and write down what it printed and left."""
    (folder / "spy").mkdir()
    clone = make_clone(folder / "clone", folder / "spy")
    # A proxy is not for this machine's own servers.
    clone.environment["HTTP_PROXY"] = "http://127.0.0.1:9"
    (folder / "output").write_text(clone.run(sys.executable, "-m", "flows"), encoding="utf-8")
    (folder / "left").write_text("\n".join(commands_in(clone.folder)), encoding="utf-8")
    refuse_calls_outside(folder / "spy")


def commands_in(folder: Path) -> list[str]:
    """Commands of the living processes that work in a folder."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.cwd() == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
    return found


LINKED = (".dvc/cache/", ".git/objects/", ".prosemill/mlflow/artifacts/")
"""Where files are never written in place, so that a copy may share them."""


def copy_workspace(finished: Path, folder: Path) -> Clone:
    """A copy of the finished workspace, in `folder`/clone, that stands by itself."""
    source, target, spy = finished / "clone", folder / "clone", folder / "spy"
    spy.mkdir(parents=True)

    def copy(file: str, to: str) -> None:
        name = Path(file).relative_to(source).as_posix()
        if name.startswith(LINKED):
            os.link(file, to)
        else:
            shutil.copy2(file, to)

    shutil.copytree(source, target, symlinks=True, copy_function=copy)
    move_tracking_store(target / ".prosemill/mlflow/mlflow.db", source, target)
    return Clone(target, spy)


def move_tracking_store(store: Path, source: Path, target: Path) -> None:
    """Have MLflow's database, which keeps absolute paths of artifacts, name those of the copy."""
    with sqlite3.connect(store) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            for _, column, kind, *_ in connection.execute(f"PRAGMA table_info({table})").fetchall():
                if kind.startswith(("VARCHAR", "TEXT")):
                    change = f"UPDATE {table} SET {column} = replace({column}, ?, ?) WHERE instr({column}, ?)"  # noqa: S608 - names of its own
                    connection.execute(change, (str(source), str(target), str(source)))
    connection.close()


@pytest.fixture(scope="module")
def clone(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """A copy of the finished workspace for a file of tests; whatever runs in it may call nobody outside."""
    folder = tmp_path_factory.mktemp("workspace")
    yield copy_workspace(finished, folder)
    refuse_calls_outside(folder / "spy")


@pytest.fixture
def own_clone(finished: Path, tmp_path: Path) -> Iterator[Clone]:
    """A copy of the finished workspace for one test, which may leave it as it likes."""
    yield copy_workspace(finished, tmp_path / "workspace")
    refuse_calls_outside(tmp_path / "workspace/spy")


def refuse_calls_outside(spy: Path) -> None:
    """Fail if something that ran under the spy called a host other than this machine."""
    assert not (spy / "report").exists(), (spy / "report").read_text(encoding="utf-8")
