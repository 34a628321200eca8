"""Training in several processes of one machine: how they are started, what they tell each other, and how they end together.

    run(2, work, argument)  # calls work(argument) in two processes, and raises what they raise

The processes are torchrun's (torch.distributed.elastic): when one dies, all are started again, and go on from what they find on the disk. A
mistake of the user's is not tried again: it ends them all and is raised once. `work` asks who it is with `is_leader`, and talks with
`gather` and `from_leader`; in one process these answer at once. `torchrun --nproc-per-node 2 -m stages.train` starts the same by hand.

The processes meet through a file and talk on the loopback interface, so nothing listens to other machines, as torchrun's own store would.
"""

import json
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import c_bool
from multiprocessing import parent_process, set_forkserver_preload
from multiprocessing.sharedctypes import RawValue
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import distributed
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import prosemill
from prosemill.console import say
from prosemill.errors import ProsemillError, is_mistake

MAX_RESTARTS = 3
RUN_ID = "training"
MISTAKE = "mistake"
"""File that says that a process ended on a mistake, so that the others' lost connections are no crashes."""
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"

Value = TypeVar("Value")

_asked: Any = None  # the shared flag of a process that `run` started


def run(num_processes: int, work: Callable[..., None], *arguments: Any) -> None:
    """Call `work(*arguments)`, here or in as many processes as wanted; it and its arguments are pickled.

    Raises:
        ProsemillError: `work` raised it, torchrun started another number of processes, or there are fewer GPUs.
        KeyboardInterrupt: this process was sent SIGTERM or SIGINT, and `work` has ended on it.
        RuntimeError: the processes died more often than they are started again.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        _work_under_torchrun(num_processes, work, arguments)
    elif num_processes == 1:
        work(*arguments)
    else:
        _check_devices(num_processes)
        _launch(num_processes, work, arguments)


def num_processes() -> int:
    """Processes that train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def is_leader() -> bool:
    """Whether this is the process that locks, tracks, shows and writes."""
    return rank() == 0


def gather(values: torch.Tensor) -> torch.Tensor:
    """The values of all processes, in their order: [process, ...]. All must call it, with tensors of one shape and dtype."""
    if num_processes() == 1:
        return values[None]
    gathered = [torch.empty_like(values) for _ in range(num_processes())]
    distributed.all_gather(gathered, values)
    return torch.stack(gathered)


def any_process(is_so: bool) -> bool:
    """Whether it is so in any of the processes. All must call it."""
    return bool(gather(torch.tensor(int(is_so))).any())


def from_leader(value: Value) -> Value:
    """The leader's value. All must call it."""
    if num_processes() == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    return values[0]


def asked_to_end() -> bool:
    """Whether the process that started this one was asked to end."""
    return _asked is not None and bool(_asked.value)


def _launch(number: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Start the processes, wait for them, and raise what they ended on."""
    for name in ("torch.distributed.elastic", "torch.multiprocessing.spawn"):  # of a lost process we say a line, of a crash its traceback
        logger = logging.getLogger(name)
        logger.addHandler(logging.NullHandler())
        logger.propagate = False
    asked = RawValue(c_bool, False)
    set_forkserver_preload(["prosemill.training"])
    with tempfile.TemporaryDirectory(prefix="prosemill-") as name, _environment(number), _passing_on_signals(asked):
        folder = Path(name)
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=number,
            run_id=RUN_ID,
            rdzv_backend="c10d",
            rdzv_endpoint=str(folder / "rendezvous"),
            rdzv_configs={"store_type": "file", "keep_alive_interval": 600},  # each sign of life makes the file longer
            local_addr="127.0.0.1",
            start_method=_start_method(),
            max_restarts=MAX_RESTARTS,
            logs_specs=DefaultLogsSpecs(log_dir=str(folder / "logs")),
            signals_to_handle="",  # it would give the processes so many seconds, and not the step that is under way
            shutdown_timeout=1,
        )
        try:
            ends: dict[int, BaseException | None] = elastic_launch(config, _work)(folder, dict(os.environ), asked, work, arguments)
        except ChildFailedError as error:
            raise RuntimeError(_tell_crash(folder, error)) from None
    for end in (ends[number] for number in sorted(ends)):
        if end is not None:
            raise end


def _start_method() -> str:
    """A server that has imported everything forks the processes at once. What has called CUDA or libraries of macOS must not be forked."""
    return "spawn" if sys.platform == "darwin" or torch.cuda.is_available() else "forkserver"


def _work(
    folder: Path, environment: dict[str, str], asked: Any, work: Callable[..., None], arguments: tuple[Any, ...]
) -> BaseException | None:
    """One process that `_launch` has started; returns the mistake that it ended on."""
    global _asked
    _asked = asked
    os.environ.update(environment)  # the server that forked it may have an older one
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"].partition(",")[0]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all, and the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    restarts = os.environ["TORCHELASTIC_RESTART_COUNT"]
    with _joined(f"file://{folder}/meeting-{restarts}"):
        if restarts != "0" and is_leader():
            say(f"a process was lost: all {num_processes()} begin again from the last checkpoint (restart {restarts} of {MAX_RESTARTS})")
        try:
            if any_process(asked_to_end()):
                raise KeyboardInterrupt
            work(*arguments)
        except BaseException as error:
            if is_mistake(error):
                (folder / MISTAKE).touch()
                return error
            if (folder / MISTAKE).exists():
                return None
            raise
    return None


def _work_under_torchrun(number: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    leads, started = os.environ["RANK"] == "0", int(os.environ["WORLD_SIZE"])
    try:
        if started != number:
            raise ProsemillError(
                f"`train.num_processes` is {number}, and WORLD_SIZE says that torchrun started {started}: "
                "make them the same, or start the stage without torchrun"
            )
        _check_devices(int(os.environ.get("LOCAL_WORLD_SIZE", started)))
        with _joined("env://"):
            work(*arguments)
    except BaseException as error:
        if is_mistake(error) and not leads:  # the leader tells it
            raise SystemExit(1) from None
        raise


def _check_devices(number: int) -> None:
    if torch.cuda.is_available() and torch.cuda.device_count() < number:
        raise ProsemillError(
            f"{number} processes need {number} GPUs, and here are {torch.cuda.device_count()}: "
            "lower train.num_processes, or set CUDA_VISIBLE_DEVICES= to train on the CPU"
        )


@contextmanager
def _joined(meeting: str) -> Iterator[None]:
    """Be one of the processes while the block runs. Whoever leaves closes its connections, which ends the waiting of the others."""
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    number, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    distributed.init_process_group(backend, init_method=meeting, rank=number, world_size=world_size)
    try:
        yield
    finally:
        distributed.destroy_process_group()


@contextmanager
def _environment(number: int) -> Iterator[None]:
    """What the processes find in their environment: they stay on this machine, and share its cores unless the user has set otherwise."""
    before = dict(os.environ)
    root = str(Path(prosemill.__file__).parents[1])  # multiprocessing's server does not take over sys.path before Python 3.12
    os.environ["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    for name, value in (
        ("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // number))),
        ("GLOO_SOCKET_IFNAME", LOOPBACK),
        ("NCCL_SOCKET_IFNAME", LOOPBACK),
    ):
        os.environ.setdefault(name, value)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _passing_on_signals(asked: Any) -> Iterator[None]:
    """Tell the processes of a SIGTERM or SIGINT; they end when they have agreed on the step. A second SIGINT ends them at once."""

    def ask(number: int, _: object) -> None:
        if number == signal.SIGINT and asked.value:
            raise KeyboardInterrupt
        asked.value = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_with_parent() -> None:
    """Wait until the process that started this one is gone, and do not train on for nobody."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)


def _tell_crash(folder: Path, error: ChildFailedError) -> str:
    """The tracebacks of the last attempt, the one that came first at the top: the others may only have lost their connection to it."""
    files = sorted(folder.glob(f"logs/*/attempt_{MAX_RESTARTS}/*/error.json"), key=lambda path: path.stat().st_mtime_ns)
    told = [_traceback_in(path) for path in files] or [failure.message for failure in error.failures.values()]
    return "\n\n".join([f"the processes that train were lost {MAX_RESTARTS + 1} times, the last time by this:", *told])


def _traceback_in(path: Path) -> str:
    return str(json.loads(path.read_text(encoding="utf-8"))["message"]["extraInfo"]["py_callstack"])
