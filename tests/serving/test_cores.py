"""A service and the client that measures it have cores of their own where there are enough, and it is told when they have not."""

import os
import re
import socket
import subprocess
import sys

import pytest

from benchmarks.cores import for_service, leave, num_threads, of_listener, on
from tests.ports import free_port

NONE, ONE, TWO, FOUR = set[int](), {0}, {0, 1}, {0, 1, 2, 3}
SHOW = "import os; print(os.sched_getaffinity(0))"


def on_machine(cores: set[int], monkeypatch: pytest.MonkeyPatch) -> list[set[int]]:
    """Have this process see such cores; where it is pinned."""
    pinned = list[set[int]]()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(cores))
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, chosen: pinned.append(chosen))
    return pinned


@pytest.mark.parametrize(("cores", "expected"), [(ONE, ONE), (TWO, TWO), ({0, 1, 2}, TWO), (FOUR, {0, 1, 2})])
def test_a_service_loses_a_core_to_the_client_where_it_has_two_others(
    cores: set[int], expected: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_machine(cores, monkeypatch)
    assert for_service() == expected


@pytest.mark.parametrize(
    ("cores", "service", "pins", "told"),
    [
        (FOUR, {0, 1, 2}, [{3}], "the service has cores 0,1,2, the client 3"),
        (FOUR, TWO, [{2, 3}], "the service has cores 0,1, the client 2,3"),
        (FOUR, FOUR, [], "nothing is pinned: .*0,1,2,3: begin the service with `taskset --cpu-list 0,1,2` to part them$"),
        (TWO, TWO, [], "nothing is pinned: .*0,1$"),
        (TWO, NONE, [], "no service is seen on this machine: nothing is pinned"),
    ],
)
def test_the_client_leaves_the_services_cores_if_there_are_others(
    cores: set[int], service: set[int], pins: list[set[int]], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = on_machine(cores, monkeypatch)
    assert re.match(told, leave(service))
    assert pinned == pins


def test_a_process_keeps_to_the_cores_of_the_thread_that_starts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    own = os.sched_getaffinity(0)
    (core, *_) = own
    with on({core}):
        told = subprocess.run([sys.executable, "-c", SHOW], check=True, capture_output=True, text=True).stdout
        assert num_threads() == 1
    assert told.strip() == str({core})
    assert os.sched_getaffinity(0) == own


def test_the_cores_of_whoever_listens_are_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        assert of_listener(door.getsockname()[1]) == os.sched_getaffinity(0)
    assert of_listener(free_port()) == NONE
