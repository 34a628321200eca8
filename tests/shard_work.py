"""Small work for the shards engine's tests, in a module that worker processes import quickly.

It is also a program, to be killed: `python -m tests.shard_work <number of tasks> <seconds per task>`.
"""

import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from prosemill.errors import ProsemillError, run_main
from prosemill.shards import HashingWriter, Row, Task, run_shards
from tests.waiting import LIMIT

OUTPUT = Path("output")
LOG = Path("log")


@dataclass(frozen=True, kw_only=True)
class Count(Task):
    """Writes `number`, 1,000 times, in five pieces."""

    number: int
    seconds: float = 0.0


def tasks_of(amount: int, seconds: float = 0.0) -> list[Count]:
    """Tasks over two folders, each with two outputs."""
    return [
        Count(
            outputs=(f"{'ab'[number % 2]}/{number:03d}.bin", f"{'ab'[number % 2]}/{number:03d}.txt"),
            inputs=(str(number),),
            number=number,
            seconds=seconds,
        )
        for number in range(amount)
    ]


def count(task: Count, writers: Mapping[str, HashingWriter]) -> dict[str, Row]:
    """The work."""
    for name in task.outputs:
        for _ in range(5):
            writers[name].write(f"{task.number} ".encode() * 200)
            time.sleep(task.seconds / 10)
    return {name: {"num_tokens": 1000} for name in task.outputs}


def count_and_log(task: Count, writers: Mapping[str, HashingWriter]) -> dict[str, Row]:
    """The work, remembering that it was done."""
    with LOG.open("a") as log:
        log.write(f"{task.number}\n")
    return count(task, writers)


def refuse_first(task: Count, writers: Mapping[str, HashingWriter]) -> dict[str, Row]:
    """The first task has the user's mistake; the others take the suite's limit, and remember that nothing ended them."""
    if task.number == 0:
        time.sleep(1)
        raise ProsemillError("the first shard is bad")
    facts = count(task, writers)
    time.sleep(LIMIT)
    LOG.touch()
    return facts


def be_killed(task: Count, writers: Mapping[str, HashingWriter]) -> dict[str, Row]:
    """What the kernel does to a worker that takes too much memory."""
    count(task, writers)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def run(amount: int, seconds: float = 0.0) -> list[Row]:
    """The stage."""
    return run_shards("count", count, tasks_of(amount, seconds), config={"times": 1000}, output=OUTPUT, measure="num_tokens")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job, as a test run may be one, is deaf to it
    run_main(lambda: (run(int(sys.argv[1]), float(sys.argv[2])), None)[1])
