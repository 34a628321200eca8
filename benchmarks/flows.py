"""What the flow adds to the pipeline: `python -m benchmarks.flows [--rounds 3] [-S model=tiny …]`.

In a clone of this repository, with `prosemill up` running there:

- `nothing to do`: wall time of the whole command `python -m flows` when every stage is unchanged and the model is registered;
- `own share`: of a real run, the whole command's time without that of the stages and the registration;
- `share`: what the flow takes of a real run beyond its peer, the same work by hand (`dvc repro` and `prosemill register`). Every round
  trains once by each, from the same state, in turns; the experiment's seed differs from round to round, so that nothing is cached. On a
  machine whose speed moves by more than the share between two runs, it says nothing; `own share` does.

Without overrides the real run is the default job, which takes minutes.
"""

import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated

import typer

from prosemill.orchestration.environment import free_port

ROOT = Path(__file__).parents[1]
FLOW = [sys.executable, "-m", "flows"]
NUM_NO_OPS = 5


def main(
    rounds: Annotated[int, typer.Option(help="Real runs of each kind.")] = 3,
    overrides: Annotated[list[str] | None, typer.Option("--override", "-S", help="The experiment, as `dvc exp run -S` takes it.")] = None,
) -> None:
    """Measure and print."""
    wanted = overrides or []
    with tempfile.TemporaryDirectory(prefix="prosemill-flows-") as scratch:
        folder = Path(scratch) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
        with _house(folder):
            timed(folder, [*FLOW, *_set(wanted)])  # fills the caches
            no_ops = [timed(folder, [*FLOW, *_set(wanted)]) for _ in range(NUM_NO_OPS)]
            print(f"nothing to do: median of {NUM_NO_OPS} {statistics.median(no_ops):.1f} s, slowest {max(no_ops):.1f} s", flush=True)
            times = [_round(folder, wanted, number) for number in range(rounds)]
    if times:
        by_flow, by_hand, own = (statistics.median(each) for each in zip(*times, strict=True))
        print(f"own share: {own:.1f} s of {by_flow:.1f} s, {own / by_flow:.1%}")
        print(f"real run: {by_flow:.1f} s as a flow, {by_hand:.1f} s by hand: the flow's share is {(by_flow - by_hand) / by_flow:.1%}")


def _set(overrides: Sequence[str]) -> list[str]:
    return [part for override in overrides for part in ("-S", override)]


def _round(folder: Path, overrides: Sequence[str], number: int) -> tuple[float, float, float]:
    """Seconds of a training as a flow and by hand, which take turns at being first, and the flow's own seconds."""
    times = {}
    for kind in ("flow", "hand") if number % 2 == 0 else ("hand", "flow"):
        seed = 1000 + 2 * number + (kind == "hand")
        wanted = [*overrides, f"train.seed={seed}"]
        if kind == "flow":
            times[kind] = timed(folder, [*FLOW, *_set(wanted)])
            own = times[kind] - _seconds_of_steps(folder)
        else:
            times[kind] = timed(folder, ["dvc", "exp", "run", *_set(wanted)]) + timed(folder, ["prosemill", "register"])
            subprocess.run(["git", "checkout", "--quiet", "params.yaml"], cwd=folder, check=True)
        print(f"round {number + 1}, {kind}: {times[kind]:.1f} s", flush=True)
    return times["flow"], times["hand"], own


def _seconds_of_steps(folder: Path) -> float:
    """Seconds that stages and registration took in the flow run that started last."""
    query = """
        SELECT SUM(julianday(end_time) - julianday(start_time)) * 86400 FROM task_run
        WHERE name != 'gate' AND flow_run_id = (SELECT id FROM flow_run WHERE start_time IS NOT NULL ORDER BY start_time DESC LIMIT 1)
    """
    with closing(sqlite3.connect(folder / ".prosemill/prefect/prefect.db")) as server:
        (seconds,) = server.execute(query).fetchone()
    return float(seconds)


@contextmanager
def _house(folder: Path) -> Iterator[None]:
    command = ["prosemill", "up", *(part for each in ("prefect", "mlflow", "service") for part in (f"--{each}-port", str(free_port())))]
    with subprocess.Popen(command, cwd=folder, env=_environment(), stderr=subprocess.PIPE, text=True) as house:
        assert house.stderr is not None
        try:
            while "Ctrl-C" not in (line := house.stderr.readline()):
                assert line, "the house does not start"
            yield
        finally:
            house.terminate()


def timed(folder: Path, command: Sequence[str]) -> float:
    """Wall time of a command in a folder, in seconds."""
    begin = time.perf_counter()
    finished = subprocess.run(
        command, cwd=folder, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert finished.returncode == 0, finished.stdout
    return time.perf_counter() - begin


def _environment() -> dict[str, str]:
    return os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


if __name__ == "__main__":
    typer.run(main)
