"""Locks of a workspace that die with the process that holds them, however it dies.

    with alone(SHARD_WORK / "download.lock", "download"):
        ...

The lock is `flock`'s, on a file that stays; what stands in the file only tells the next one who came first.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TextIO

from prosemill.errors import ProsemillError


class BusyError(ProsemillError):
    """Another process holds the lock; the message says which."""


@contextmanager
def alone(lock: Path, work: str, *, wait: bool = False) -> Iterator[TextIO]:
    """Hold a lock while the block runs; it gets the lock's open file, and a child that inherits this holds the lock too.

    Args:
        lock: The lock's file; made if it is not there.
        work: What must not run twice, for the message.
        wait: Whether to wait for another process that holds it.

    Raises:
        BusyError: another process holds it, and `wait` is off.
        ProsemillError: its file cannot be made.
    """
    with _opened(lock) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "a process that has just begun"
            raise BusyError(f"another {work} is at work ({holder}): wait for it or end it, then run this again") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} since {datetime.now().astimezone().isoformat(sep=' ', timespec='seconds')}")
        file.flush()
        yield file


def _opened(lock: Path) -> TextIO:
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        return lock.open("a+", encoding="utf-8")
    except OSError as error:
        raise ProsemillError(f"the lock {lock} cannot be made ({error.strerror}): make its folder writable") from None
