"""What the processes of a training may suffer: each function trains in the place of `prosemill.training._train`, in one of them."""

import json
import os
import signal
import time
from collections.abc import Callable
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import psutil
import torch

import prosemill.training
from prosemill.training.processes import asked_to_end, rank
from prosemill.training.trainer import TokenWeightedTrainer

LISTENERS = "listeners-{}.json"


def lose_one(*arguments: Any) -> None:
    """The second of the processes is killed before its seventh step, once."""

    def begin(step: int) -> None:
        if rank() == 0:
            with Path("begun").open("a", encoding="utf-8") as file:
                file.write(f"{step}\n")

    def kill() -> None:
        if rank() == 1 and not Path("killed").exists():
            Path("killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    _train(arguments, before_step={0: lambda: begin(0), 4: lambda: begin(4), 6: kill})


def log_seldom(*arguments: Any) -> None:
    """The loss is logged at measurements alone, so that a checkpoint between two of them has losses to remember."""
    prosemill.training.LOGS_PER_EVALUATION = 1
    prosemill.training._train(*arguments)


def ask_parent(*arguments: Any) -> None:
    """The leader has the process that started it asked to end, before the sixth step; before, all tell who listens. Logs seldom."""
    prosemill.training.LOGS_PER_EVALUATION = 1

    def ask() -> None:
        if rank() == 0:
            os.kill(_parent(), signal.SIGTERM)
            end = time.monotonic() + 20
            while not asked_to_end() and time.monotonic() < end:
                time.sleep(0.01)

    _train(arguments, before_step={3: _tell_listeners, 5: ask})


def fill_disk(*arguments: Any) -> None:
    """The disk is full at the second checkpoint."""
    TokenWeightedTrainer._save_optimizer_and_scheduler = saving_on_a_disk_that_fills()  # type: ignore[method-assign, assignment]
    prosemill.training._train(*arguments)


def saving_on_a_disk_that_fills() -> Callable[[TokenWeightedTrainer, str], None]:
    """What saves the optimizer, and at the second checkpoint meets torch's own error for a full disk."""
    original, count = TokenWeightedTrainer._save_optimizer_and_scheduler, 0

    def save(self: TokenWeightedTrainer, folder: str) -> None:
        nonlocal count
        count += 1
        original(self, folder)
        if count == 2:
            torch.save(torch.zeros(1 << 20), "/dev/full")

    return save


def have_a_bug(*arguments: Any) -> None:
    """The second of the processes meets a bug in its third step, whenever it is started."""

    def fail() -> None:
        with Path("starts").open("a", encoding="utf-8") as file:
            file.write(f"{rank()}\n")
        if rank() == 1:
            raise LookupError("a bug of ours")

    _train(arguments, before_step={2: fail})


def _train(arguments: Any, *, before_step: dict[int, Callable[[], object]]) -> None:
    """Do something before the first part of a step."""
    original = TokenWeightedTrainer.training_step

    def training_step(self: TokenWeightedTrainer, *options: Any) -> Any:
        if self._turn == 0 and self.state.global_step in before_step:
            before_step[self.state.global_step]()
        return original(self, *options)

    TokenWeightedTrainer.training_step = training_step  # type: ignore[method-assign, assignment]
    prosemill.training._train(*arguments)


def _parent() -> int:
    """The process that trains in several, whichever has forked this one for it."""
    parent = parent_process()
    assert parent is not None
    assert parent.pid is not None
    return parent.pid


def _tell_listeners() -> None:
    """Write down the addresses that this process and those that started it listen at."""
    open_sockets = [socket for process in (os.getpid(), os.getppid(), _parent()) for socket in psutil.Process(process).net_connections()]
    hosts = [socket.laddr.ip for socket in open_sockets if socket.status == psutil.CONN_LISTEN]
    Path(LISTENERS.format(rank())).write_text(json.dumps([os.environ["GLOO_SOCKET_IFNAME"], *hosts]), encoding="utf-8")
