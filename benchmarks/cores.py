"""Which cores a service has and which its client, so that the client does not take what is measured.

with on(for_service()):
    service = subprocess.Popen(command)    # a process keeps to the cores of the thread that starts it
print(leave(for_service()))
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil


def for_service() -> set[int]:
    """All cores but the last; of two or one all, as a service would lose half of them or have none."""
    own = os.sched_getaffinity(0)
    return own - {max(own)} if len(own) > 2 else own


def of_listener(port: int) -> set[int]:
    """The cores of whoever listens at a port of this machine; none if nobody is seen there."""
    doors = [each for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port == port]
    found = {door.pid for door in doors if door.pid is not None}
    return {core for pid in found for core in psutil.Process(pid).cpu_affinity()}


@contextmanager
def on(cores: set[int]) -> Iterator[None]:
    """Have this thread, and the threads and processes that it starts meanwhile, keep to some cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def num_threads() -> int:
    """With how many threads torch begins in a process that this thread starts."""
    command = [sys.executable, "-c", "import torch; print(torch.get_num_threads())"]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def leave(service: set[int]) -> str:
    """Have this thread, and what it starts from now on, leave a service's cores to it if there are others; what has come of that."""
    own = os.sched_getaffinity(0)
    if not service:
        return f"no service is seen on this machine: nothing is pinned, the client has cores {_listed(own)}"
    if left := own - service:
        os.sched_setaffinity(0, left)
        return f"the service has cores {_listed(service)}, the client {_listed(left)}"
    remedy = f": begin the service with `taskset --cpu-list {_listed(for_service())}` to part them" if for_service() != own else ""
    return f"nothing is pinned: the client takes its part of the service's cores {_listed(service)}{remedy}"


def _listed(cores: set[int]) -> str:
    return ",".join(map(str, sorted(cores)))
