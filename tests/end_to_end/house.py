"""The real `prosemill up` in a clone of its own: start it, ask its servers, and see that nothing of it is left."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import psutil
import requests

from tests.end_to_end.conftest import Clone, copy_workspace, make_clone
from tests.end_to_end.prefect_api import PrefectApi
from tests.ports import free_ports
from tests.waiting import LIMIT, until

T = TypeVar("T")

# The clone's package, not the installed one of the tests: `-P` keeps the current folder out, and PYTHONPATH puts the clone before all else.
PROSEMILL = (sys.executable, "-P", "-c", "from prosemill.cli import app; app()")
PORT_OPTIONS = ("--prefect-port", "--mlflow-port", "--service-port")
READY = "Ctrl-C ends them all"


class HouseClone(Clone):
    """A clone whose own package runs, below an empty home folder; the spy lets nothing in it call anybody outside."""

    def __init__(self, folder: Path, spy: Path, home: Path) -> None:
        super().__init__(folder, spy)
        self.home, self.spy_report = home, spy / "report"
        for name in [name for name in self.environment if name.startswith(("PREFECT_", "MLFLOW_SERVER_", "XDG_"))]:
            del self.environment[name]
        self.environment |= {"PYTHONPATH": f"{spy}{os.pathsep}{folder}", "HOME": str(home), "PWD": str(folder)}

    def up(self, *options: str) -> "subprocess.CompletedProcess[str]":
        """Run a `prosemill up` that ends by itself."""
        command = [*PROSEMILL, "up", *options]
        return subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False, timeout=LIMIT)

    def start(self, log: Path, *options: str, **environment: str) -> "subprocess.Popen[bytes]":
        """Start `prosemill up` as the leader of its process group, as a terminal does."""
        with log.open("wb") as file:
            return subprocess.Popen(
                [*PROSEMILL, "up", *options],
                cwd=self.folder,
                env=self.environment | environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def processes(self) -> set[psutil.Process]:
        """Every living process that was started in this clone: what the spy watches names its report, whoever its parent is."""
        return {process for process in psutil.process_iter() if self._is_ours(process)}

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get("SPY_REPORT") == str(self.spy_report) and is_alive(process)
        except psutil.Error:
            return False


class House:
    """A `prosemill up` that runs, and how its servers are asked."""

    def __init__(self, clone: HouseClone, process: "subprocess.Popen[bytes]", ports: Sequence[int], log: Path) -> None:
        self.clone, self.process, self.ports, self.log = clone, process, tuple(ports), log
        self.prefect, self.mlflow, self.service = (f"http://127.0.0.1:{port}" for port in ports)

    @property
    def auth_file(self) -> Path:
        """Where user and password of Prefect's server and MLflow's page stand."""
        return self.clone.folder / ".prosemill/auth"

    @property
    def auth(self) -> str:
        """User and password of Prefect's server and MLflow's page."""
        return self.auth_file.read_text(encoding="ascii")

    @property
    def mlflow_environment(self) -> dict[str, str]:
        """What lets MLflow's clients in."""
        user, _, password = self.auth.partition(":")
        return {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": password}

    def api(self) -> PrefectApi:
        """Prefect's interface, as it answers to whom knows the password."""
        return PrefectApi(self.prefect, self.auth)

    def session(self) -> requests.Session:
        """A client that has the password and a CSRF token, to be robbed of either."""
        return self.api().session

    def is_over(self) -> bool:
        """Whether `prosemill up` itself has ended."""
        return self.process.poll() is not None

    def processes(self) -> set[psutil.Process]:
        """`prosemill up` and every process below it."""
        above = psutil.Process(self.process.pid)
        return {above, *above.children(recursive=True)} | self.clone.processes()


@contextmanager
def running_house(clone: HouseClone, log: Path, *, end: signal.Signals = signal.SIGINT, **environment: str) -> Iterator[House]:
    """`prosemill up` while the block runs; at its end a signal to its process group, as a terminal sends it, leaves nothing of it alive."""
    with started_house(clone, log, **environment) as house:
        yield house
        started = house.processes()
        os.killpg(house.process.pid, end)
        until(lambda: house.is_over() and not living(started | clone.processes()), "nothing of the house is left")
        assert house.process.returncode == 0, log.read_text()


@contextmanager
def started_house(clone: HouseClone, log: Path, ports: Sequence[int] = (), /, **environment: str) -> Iterator[House]:
    """A `prosemill up` that stands. How it ends is the block's matter; no process of a test that failed lives on."""
    ports = ports or free_ports(len(PORT_OPTIONS))
    process = clone.start(log, *port_options(ports), **environment)
    house = House(clone, process, ports, log)
    try:
        until(lambda: READY in log.read_text() or house.is_over(), "prosemill up says where its servers are")
        assert not house.is_over(), log.read_text()
        yield house
    finally:
        for left in clone.processes():
            with suppress(psutil.NoSuchProcess):
                left.kill()


def port_options(ports: Sequence[int]) -> list[str]:
    """Options of `prosemill up` for Prefect's port, MLflow's and the service's."""
    return [str(part) for pair in zip(PORT_OPTIONS, ports, strict=True) for part in pair]


def make_house_clone(folder: Path, finished: Path | None = None) -> HouseClone:
    """In `folder`/clone a copy of the finished workspace, or a clone in which nothing has run."""
    (spy, home) = (folder / name for name in ("spy", "home"))
    home.mkdir(parents=True)
    if finished is None:
        spy.mkdir()
        made = make_clone(folder / "clone", spy)
    else:
        made = copy_workspace(finished, folder)
    return HouseClone(made.folder, spy, home)


def told(processes: Iterable[psutil.Process], question: Callable[[psutil.Process], T]) -> dict[psutil.Process, T]:
    """Each process's answer to a question; none of those that have ended meanwhile."""
    answers = {}
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            answers[process] = question(process)
    return answers


def living(processes: set[psutil.Process]) -> set[psutil.Process]:
    """Those that have not ended; one that only waits to be reaped has."""
    return {process for process in processes if is_alive(process)}


def is_alive(process: psutil.Process) -> bool:
    """Whether a process has not ended."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
