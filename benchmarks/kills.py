"""The pipeline killed at random moments and started again, against a run that was never killed.

    python -m benchmarks.kills              # 30 kills, half an hour or more on two cores
    python -m benchmarks.kills --kills 6

The small experiment (`-S model=tiny -S corpus=python-300`, with dropout) runs in clones of this repository. In each a `dvc repro` is sent
SIGKILL at a random moment of an uncut run's time: in turns the whole process group, as when a machine loses its power, and DVC alone,
whose stage must then end by itself. Then the same command is given again; if the kill has cut DVC's list of files in use or dvc.lock short,
they are mended first, as a flow does it. What it leaves must be what the uncut run left, byte for byte: the corpus, the tokens, the blocks
and both models by the digests in dvc.lock, the curves, and all metrics but times. Training must be one run in MLflow, and finished.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
import yaml

from prosemill.console import say
from prosemill.orchestration.stages import mend_files_of_dvc
from prosemill.workspace import BASE_MODEL, BLOCKS, CORPUS, LOCK, METRICS, REPORTS, TOKENS, TRACKING, TRAINED_MODEL

ROOT = Path(__file__).parents[1]
EXPERIMENT = ["model=tiny", "corpus=python-300", "method=lora", "train.lora.dropout=0.2", "train.max_steps=60", "train.precision=fp32"]
OUTPUTS = {path.as_posix() for path in (CORPUS, TOKENS, BLOCKS, BASE_MODEL, TRAINED_MODEL)}
OF_THE_MACHINE = ("_ms", "_ms_p95", "_seconds", "_per_second", "peak_memory_bytes", "mfu")
"""Ends of names of metrics that say how fast and how large, not what."""
ORPHAN_SECONDS = 10.0  # after which a stage without its DVC counts as one that does not end


@dataclass(frozen=True)
class Kill:
    """What a kill came to."""

    moment: float
    """Seconds after the start."""
    alone: bool
    """Whether DVC alone was killed."""
    stage: str
    """What was running, or `no stage`: DVC was between two, or done."""
    orphan_seconds: float
    """How long the last process outlived it."""
    differing: list[str]
    """What differs from the uncut run."""


def make_clone(folder: Path) -> dict[str, str]:
    """A clone with the small experiment as its params; the environment for commands in it."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MLFLOW_TRACKING_URI")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    compose(folder, environment, EXPERIMENT)
    return environment


def compose(folder: Path, environment: dict[str, str], overrides: Sequence[str]) -> None:
    """Write a clone's params.yaml as `dvc exp run -S …` would."""
    code = (
        "from dvc.utils.hydra import compose_and_dump as c; import sys; c('params.yaml', sys.argv[1], None, 'default', '.', sys.argv[2:])"
    )
    command = [sys.executable, "-c", code, str(folder / "experiments"), *overrides]
    subprocess.run(command, cwd=folder, env=environment, check=True)


def run_whole(folder: Path, environment: dict[str, str], *stages: str) -> float:
    """`dvc repro`, of some stages or of all, to its end; its seconds."""
    start = time.monotonic()
    finished = subprocess.run(["dvc", "repro", *stages], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return time.monotonic() - start


def result_of(folder: Path) -> dict[str, Any]:
    """What the pipeline left, without times."""
    lock = yaml.safe_load((folder / LOCK).read_text(encoding="utf-8"))["stages"]
    found = {out["path"]: out["md5"] for stage in lock.values() for out in stage["outs"] if out["path"] in OUTPUTS}
    assert set(found) == OUTPUTS
    found |= {path.name: path.read_text(encoding="utf-8") for path in (folder / REPORTS).glob("*.csv")}
    for path in (folder / METRICS).glob("*.json"):
        found |= {f"{path.name}: {name}": value for name, value in _numbers(json.loads(path.read_text(encoding="utf-8")))}
    return found | {"tracked runs": _tracked_runs(folder)}


def kill_once(
    folder: Path,
    environment: dict[str, str],
    wait: Callable[["subprocess.Popen[bytes]"], None],
    *stages: str,
    alone: bool,
    expected: dict[str, Any],
) -> Kill:
    """Kill a `dvc repro` in a folder when `wait` returns, run it again, and compare."""
    child = subprocess.Popen(
        ["dvc", "repro", *stages], cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    begin = time.monotonic()
    wait(child)
    moment = time.monotonic() - begin
    family = psutil.Process(child.pid).children(recursive=True) if child.poll() is None else []
    stage = next((part for one in family for part in _command(one) if part.startswith("stages.")), "no stage")
    if child.poll() is None:
        (os.kill if alone else os.killpg)(child.pid, signal.SIGKILL)
    child.wait()
    start = time.monotonic()
    left = psutil.wait_procs(family, timeout=ORPHAN_SECONDS)[1]
    orphan_seconds = time.monotonic() - start
    assert not left, f"{left} outlived DVC by {ORPHAN_SECONDS} s"
    mend_files_of_dvc(folder)
    run_whole(folder, environment, *stages)
    found = result_of(folder)
    differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    return Kill(moment, alone, stage, orphan_seconds, differing)


def after(seconds: float) -> Callable[["subprocess.Popen[bytes]"], None]:
    """Wait for a time, whatever runs then."""
    return lambda _: time.sleep(seconds)


def kill_often(root: Path, kills: int, seed: int) -> Iterator[Kill]:
    """Kill the pipeline so many times, each in a clone below `root`."""
    seconds = run_whole(root / "uncut", make_clone(root / "uncut"))
    expected = result_of(root / "uncut")
    assert expected["tracked runs"] == ["FINISHED"]
    say(f"an uncut run takes {seconds:.0f} s and leaves {len(expected)} digests and numbers")
    generator = random.Random(seed)  # noqa: S311 - moments, no secrets
    for number in range(kills):
        # One from each stretch of equal length, so that a few kills too are spread over all stages.
        moment = (number + generator.random()) / kills * seconds
        folder = root / str(number)
        yield kill_once(folder, make_clone(folder), after(moment), alone=number % 2 == 1, expected=expected)


def _numbers(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}.")
        elif not name.endswith(OF_THE_MACHINE):
            yield f"{prefix}{name}", value


def _tracked_runs(folder: Path) -> list[str]:
    """The states of all runs in the clone's MLflow store."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder.absolute() / TRACKING}/mlflow.db")
    return [run.info.status for run in client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def main(
    kills: Annotated[int, typer.Option(help="How many times to kill.")] = 30,
    seed: Annotated[int, typer.Option(help="Seed of the moments.")] = 0,
) -> None:
    """Kill the pipeline, and print a Markdown table of what came of it."""
    print("| killed after, s | what | in | orphan lived, s | differs |\n|---|---|---|---|---|")
    found = []
    with tempfile.TemporaryDirectory(prefix="prosemill-kills-") as folder:
        for kill in kill_often(Path(folder), kills, seed):
            killed = "DVC alone" if kill.alone else "the whole group"
            print(f"| {kill.moment:.1f} | {killed} | {kill.stage} | {kill.orphan_seconds:.1f} | {', '.join(kill.differing) or 'nothing'} |")
            found.append(kill)
    num_differing = sum(bool(kill.differing) for kill in found)
    print(f"\n{num_differing} of {len(found)} runs differ from the uncut one")
    assert num_differing == 0


if __name__ == "__main__":
    typer.run(main)
