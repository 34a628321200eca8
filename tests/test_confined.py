"""A reader in its own process: what it returns, what it raises, and how it dies."""

import ctypes
import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from prosemill.confined import run_confined
from prosemill.errors import ProsemillError
from tests.waiting import LIMIT, until

MIB = 1 << 20


def add(left: int, right: int) -> tuple[int, int]:
    return left + right, os.getpid()


def allocate(num_bytes: int) -> int:
    return len(bytearray(num_bytes))


def allocate_beside(module: str, num_bytes: int) -> bool:
    return allocate(num_bytes) == num_bytes and module in sys.modules


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def hold_the_interpreter(seconds: int) -> None:
    """Sleep in C without letting any other Python thread run."""
    ctypes.PyDLL(None).sleep(seconds)


def crash() -> None:
    ctypes.string_at(0)


def leave() -> None:
    os._exit(7)


def refuse() -> None:
    raise ProsemillError("a.txt is not UTF-8: convert it")


def fail() -> None:
    raise KeyError("a bug")


class UnpicklableError(Exception):
    def __init__(self, left: str, right: str) -> None:
        super().__init__(left + right)


def fail_unpicklably() -> None:
    raise UnpicklableError("left", "right")


def disk_full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "here")


def read_uninterrupted(path: str, seconds: float) -> None:
    Path(path).write_text(str(os.getpid()))
    hold_the_interpreter(int(seconds))


def test_the_result_comes_from_another_process() -> None:
    total, process = run_confined(add, 1, 2, memory_bytes=100 * MIB, seconds=LIMIT)
    assert total == 3
    assert process != os.getpid()


def test_a_large_result_comes_back_whole() -> None:
    assert run_confined(bytes, 5 * MIB, memory_bytes=100 * MIB, seconds=LIMIT) == bytes(5 * MIB)


@pytest.mark.parametrize("reader", [sleep, hold_the_interpreter])
def test_a_hanging_reader_is_ended_in_time(reader: object) -> None:
    start = time.monotonic()
    with pytest.raises(ProsemillError, match=r"^odd\.gguf: reading it was not done after 0\.5 s"):
        run_confined(reader, LIMIT, memory_bytes=100 * MIB, seconds=0.5, what="odd.gguf")  # type: ignore[arg-type]
    assert time.monotonic() - start < LIMIT


def test_memory_is_limited_to_what_the_reader_adds() -> None:
    assert run_confined(allocate, 90 * MIB, memory_bytes=100 * MIB, seconds=LIMIT) == 90 * MIB
    with pytest.raises(ProsemillError, match=r"^bomb\.parquet: reading it takes more than 100 MiB of memory"):
        run_confined(allocate, 110 * MIB, memory_bytes=100 * MIB, seconds=LIMIT, what="bomb.parquet")


def test_a_module_that_is_loaded_before_does_not_count() -> None:
    module = "pyarrow.parquet"
    assert run_confined(allocate_beside, module, 40 * MIB, memory_bytes=50 * MIB, seconds=LIMIT, preload=(module,))


@pytest.mark.parametrize(("reader", "reason"), [(crash, "SIGSEGV"), (leave, "exit status 7")])
def test_a_dying_reader_is_one_line(reader: object, reason: str) -> None:
    with pytest.raises(ProsemillError, match=reason) as caught:
        run_confined(reader, memory_bytes=100 * MIB, seconds=LIMIT, what="odd.gguf")  # type: ignore[arg-type]
    assert str(caught.value).startswith("odd.gguf: ")
    assert "\n" not in str(caught.value)


def test_the_readers_own_complaint_passes_through() -> None:
    with pytest.raises(ProsemillError, match=r"^a\.txt is not UTF-8: convert it$"):
        run_confined(refuse, memory_bytes=100 * MIB, seconds=LIMIT, what="other")


def test_a_bug_keeps_its_class_and_its_trace() -> None:
    with pytest.raises(KeyError, match="a bug") as caught:
        run_confined(fail, memory_bytes=100 * MIB, seconds=LIMIT)
    assert "in fail" in caught.value.__notes__[0]


def test_a_bug_that_does_not_pickle_is_still_told() -> None:
    with pytest.raises(RuntimeError, match="leftright"):
        run_confined(fail_unpicklably, memory_bytes=100 * MIB, seconds=LIMIT)


def test_a_full_disk_stays_a_full_disk() -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        run_confined(disk_full, memory_bytes=100 * MIB, seconds=LIMIT)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "here")


def test_no_child_outlives_a_killed_parent(tmp_path: Path) -> None:
    note = tmp_path / "child"
    code = f"""if __name__ == "__main__":
        from prosemill.confined import run_confined
        from tests.test_confined import read_uninterrupted
        run_confined(read_uninterrupted, {str(note)!r}, 3.0, memory_bytes=100 << 20, seconds=1.0)"""
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        until(lambda: note.exists() and note.read_text() != "", "it says who it is")
        parent.kill()
    child = int(note.read_text())
    until(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE, "it is gone")
