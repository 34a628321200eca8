"""Promotions killed at random writes to the registry: what is served is valid at every moment, and the next call mends the rest.

    python -m benchmarks.promotions                   # 200 kills, some ten minutes on two cores
    python -m benchmarks.promotions --kills 20

In a clone of this repository the small experiment is trained, evaluated and registered three times, as versions that pass the gate against
each other. Then one process after the other promotes one of them, or rolls back, and sends itself SIGKILL right before or after one of its
writes, a random one. After each kill another process looks whether the champion and its predecessor are versions that are there, and does
the same again to its end. The registry is the clone's own SQLite file, whatever `MLFLOW_TRACKING_URI` says.
"""

import multiprocessing
import os
import random
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, chdir
from pathlib import Path
from typing import Annotated, Any

import dvc.repo
import mlflow.artifacts
import mlflow.store.model_registry.sqlalchemy_store
import mlflow.store.tracking.sqlalchemy_store
import typer

from benchmarks.kills import EXPERIMENT, compose, make_clone, run_whole
from prosemill.console import say
from prosemill.params import Gate, read_section
from prosemill.registry.promotion import promote, roll_back, settle
from prosemill.registry.store import CHAMPION, PREVIOUS_CHAMPION, Registry

NUM_VERSIONS = 3
AS_GOOD_AS_EACH_OTHER = "gate.min_improvement=0"
WRITES = ("set_alias", "set_state", "set_tags", "describe")
NUM_WRITES = {"promote": 6, "roll back": 5}  # calls of these; with one more a process would come to its end
TIMED = 5
PRELOADED = (dvc.repo, mlflow.artifacts, mlflow.store.model_registry.sqlalchemy_store, mlflow.store.tracking.sqlalchemy_store)
"""What every forked process would import first, which takes far longer than a promotion."""

Served = tuple[int | None, int | None]


def main(
    kills: Annotated[int, typer.Option(help="How many promotions and rollbacks to kill.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of what is done and where it is killed.")] = 0,
) -> None:
    """Kill promotions, and print what came of it and how long one takes."""
    generator = random.Random(seed)  # noqa: S311 - moments, no secrets
    with tempfile.TemporaryDirectory(prefix="prosemill-promotions-") as folder, ExitStack() as stack:
        environment = _register_versions(Path(folder) / "clone")
        stack.enter_context(chdir(Path(folder) / "clone"))
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        seconds = [_timed_promotion(number, environment) for number in [1, 2, 3, 1, 2][:TIMED]]
        print(f"`prosemill promote` takes {statistics.median(seconds):.1f} s (median of {TIMED}, from start to end of the process)")
        num_undone = num_invalid = 0
        for _ in range(kills):
            before = _in_child(_served)
            number = generator.choice([each for each in range(1, NUM_VERSIONS + 1) if each != before[0]])
            back = before[1] is not None and generator.random() < 0.3
            change, target = (_roll_back, (before[1], None)) if back else (_promoted(number), (number, before[0]))
            _kill(change, write=generator.randint(1, NUM_WRITES["roll back" if back else "promote"]), after=generator.random() < 0.5)
            found = _in_child(_served)
            num_invalid += found[0] not in (before[0], target[0]) or not _in_child(_is_valid)
            num_undone += found[0] == before[0]
            if found[0] == before[0]:
                _in_child(change)
            else:
                _in_child(_settle)
            num_invalid += _in_child(_served) != target
        print(f"{kills} were killed, {num_undone} of them before the champion changed")
        print(f"{num_invalid} invalid states of the registry")
        assert num_invalid == 0


def _register_versions(folder: Path) -> dict[str, str]:
    environment = make_clone(folder)
    for number in range(1, NUM_VERSIONS + 1):
        # Another fingerprint, the same weights: versions that are as good as each other.
        compose(folder, environment, [*EXPERIMENT, f"train.sample_tokens={7 + number}", AS_GOOD_AS_EACH_OTHER])
        identity = ["-c", "user.name=Nobody", "-c", "user.email=nobody@example.org"]
        subprocess.run(["git", *identity, "commit", "--quiet", "--all", "--message", "Change the params"], cwd=folder, check=True)
        run_whole(folder, environment)
        subprocess.run(["prosemill", "register"], cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=True)
        say(f"version {number} of {NUM_VERSIONS} is registered")
    return environment


def _timed_promotion(number: int, environment: dict[str, str]) -> float:
    start = time.perf_counter()
    subprocess.run(["prosemill", "promote", str(number)], env=environment, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def _promoted(number: int) -> Callable[[], None]:
    def change() -> None:
        verdict = promote(Registry.open(), read_section("gate", Gate), number)
        assert verdict.passed, verdict

    return change


def _roll_back() -> None:
    roll_back(Registry.open())


def _settle() -> None:
    """What every call does first."""
    settle(Registry.open())


def _served() -> Served:
    aliases = Registry.open().aliases()
    return aliases.get(CHAMPION), aliases.get(PREVIOUS_CHAMPION)


def _is_valid() -> bool:
    registry = Registry.open()
    numbers = {version.number for version in registry.versions()}
    return all(number is None or number in numbers for number in _served()) and _served()[0] is not None


def _in_child(work: Callable[[], Any]) -> Any:
    """What `work` returns in a process of its own: this one has no connection to the database that a child could break."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=lambda: theirs.send(work()))
    child.start()
    theirs.close()
    result = ours.recv()
    child.join()
    return result


def _kill(change: Callable[[], None], *, write: int, after: bool) -> None:
    """Do a change in a process that sends itself SIGKILL at this write."""
    child = multiprocessing.get_context("fork").Process(target=_change_and_die, args=(change, write, after))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL, child.exitcode


def _change_and_die(change: Callable[[], None], write: int, after: bool) -> None:
    count = 0

    def counted(original: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any, **options: Any) -> None:
            nonlocal count
            count += 1
            if count == write and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            original(*arguments, **options)
            if count == write:
                os.kill(os.getpid(), signal.SIGKILL)

        return call

    for name in WRITES:
        setattr(Registry, name, counted(getattr(Registry, name)))
    change()


if __name__ == "__main__":
    typer.run(main)
