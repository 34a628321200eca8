"""What the flow adds to the pipeline: `python -m benchmarks.flows [--rounds 3] [--override model=tiny …]`.

In a clone of this repository, with `prosemill up` running there:

- `nothing to do`: wall time of the whole command `python -m flows` when every stage is unchanged and the model is registered;
- `share`: what the flow takes of a real run beyond its peer, the same work by hand (`dvc repro` and `prosemill register`). Every round
  trains once by each, from the same state, in turns; the experiment's seed differs from round to round, so that nothing is cached.

Without overrides the real run is the default job, which takes minutes.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from prosemill.orchestration.environment import free_port

ROOT = Path(__file__).parents[1]
NUM_NO_OPS = 5


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--override", nargs="*", default=[])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="prosemill-flows-") as scratch:
        folder = Path(scratch) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
        with _house(folder):
            timed(folder, [*FLOW, *_set(arguments.override)])  # fills the caches
            no_ops = [timed(folder, [*FLOW, *_set(arguments.override)]) for _ in range(NUM_NO_OPS)]
            print(f"nothing to do: median of {NUM_NO_OPS} {statistics.median(no_ops):.1f} s, slowest {max(no_ops):.1f} s")
            rounds = [_round(folder, arguments.override, number) for number in range(arguments.rounds)]
    by_flow, by_hand = (statistics.median(times) for times in zip(*rounds, strict=True))
    print(f"real run: {by_flow:.1f} s as a flow, {by_hand:.1f} s by hand: the flow's share is {(by_flow - by_hand) / by_flow:.1%}")


FLOW = [sys.executable, "-m", "flows"]


def _set(overrides: Sequence[str]) -> list[str]:
    return [part for override in overrides for part in ("-S", override)]


def _round(folder: Path, overrides: Sequence[str], number: int) -> tuple[float, float]:
    """Seconds of a training as a flow and by hand; the two take turns at being first."""
    times = {}
    for kind in ("flow", "hand") if number % 2 == 0 else ("hand", "flow"):
        seed = 1000 + 2 * number + (kind == "hand")
        wanted = [*overrides, f"train.seed={seed}"]
        if kind == "flow":
            times[kind] = timed(folder, [*FLOW, *_set(wanted)])
        else:
            times[kind] = timed(folder, ["dvc", "exp", "run", *_set(wanted)]) + timed(folder, ["prosemill", "register"])
            subprocess.run(["git", "checkout", "--quiet", "params.yaml"], cwd=folder, check=True)
        print(f"round {number + 1}, {kind}: {times[kind]:.1f} s", flush=True)
    return times["flow"], times["hand"]


@contextmanager
def _house(folder: Path) -> Iterator[None]:
    command = ["prosemill", "up", "--prefect-port", str(free_port()), "--mlflow-port", str(free_port())]
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
    main()
