"""A clone of this repository with the small experiment as its default, in which the real pipeline runs."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from dvc.utils.hydra import compose_and_dump

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
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """One clone for all end-to-end tests, in which the pipeline has run once; whatever runs in it may call nobody outside."""
    spy = tmp_path_factory.mktemp("spy")
    clone = make_clone(tmp_path_factory.mktemp("end-to-end") / "clone", spy)
    assert clone.repro() == ["download", "tokenize", "group", "train", "evaluate"]
    yield clone
    assert not (spy / "report").exists(), (spy / "report").read_text(encoding="utf-8")
