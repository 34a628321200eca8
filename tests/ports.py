"""Ports for servers that are started a moment later, which no other process takes meanwhile.

The system gives ports from 32768 on to whoever asks for any, and to every client's connection; these come from below. A lock of each, held
until this process ends, keeps it from all other processes that run tests on this machine.
"""

import fcntl
import os
import socket
import tempfile
from pathlib import Path
from typing import TextIO

FIRST, LAST = 20_000, 30_000
_locks: list[TextIO] = []
"""Of the ports that this process was given."""


def free_port() -> int:
    """A port that nobody listens on; each call gives another."""
    folder = Path(tempfile.gettempdir()) / f"prosemill-test-ports-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    return next(port for port in range(FIRST, LAST) if _reserve(folder / str(port)) and _is_free(port))


def free_ports(number: int) -> list[int]:
    """As many ports, each another."""
    return [free_port() for _ in range(number)]


def _reserve(lock: Path) -> bool:
    file = lock.open("w", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return False
    _locks.append(file)
    return True


def _is_free(port: int) -> bool:
    try:
        with socket.create_server(("127.0.0.1", port)):
            return True
    except OSError:
        return False
