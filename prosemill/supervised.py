"""A command in a process group of its own, none of whose processes outlives its caller.

    code = run_supervised(["dvc", "repro", "train"], print, seconds=3600)

Between the caller and the command stands a supervisor: this file, run as a program. It holds the reading end of a pipe whose other end the
caller alone has, so it notices the caller's end however that comes, SIGKILL included. Then, and when the command has ended, it asks what is
left below it to end (SIGTERM, on which training saves a checkpoint), and after a while (`GRACE` seconds) it kills the rest.
"""

import ctypes
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

GRACE = 7.0  # seconds between SIGTERM and SIGKILL
TICK = 0.5  # seconds between two looks at the clock
PR_SET_CHILD_SUBREAPER = 36  # of Linux's prctl


def run_supervised(
    command: Sequence[str],
    on_line: Callable[[str], None],
    *,
    seconds: float | None = None,
    tick: Callable[[], None] | None = None,
    hold: Sequence[int] = (),
) -> int:
    """Run a command to its end.

    Args:
        command: Program and arguments; its standard input is empty.
        on_line: Called with every line that the command or a process below it prints, as it comes, without its end.
        seconds: The most that it may take.
        tick: Called about twice a second; what it raises ends the command.
        hold: Open file descriptors, as of locks, that stay open until the last process of the command is gone.

    Returns:
        The command's exit status; 128 and the signal's number if it was killed.

    Raises:
        TimeoutError: it took longer, and was ended.
        BaseException: what a signal handler, `on_line` or `tick` raised; the command was ended then.
    """
    process = _start(command, subprocess.PIPE, hold, GRACE)
    assert process.stdin is not None
    assert process.stdout is not None
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    reader = threading.Thread(target=_read, args=(process.stdout, lines), daemon=True)
    reader.start()
    try:
        _pass_on(lines, on_line, None if seconds is None else time.monotonic() + seconds, tick or (lambda: None))
        return process.wait()
    finally:
        process.stdin.close()
        _see_off(process, GRACE)
        reader.join(TICK)
        while not lines.empty() and (last := lines.get()) is not None:
            on_line(last)


@contextmanager
def supervised(command: Sequence[str], log: Path, *, grace: float = GRACE) -> Iterator["subprocess.Popen[str]"]:
    """Have a command run in the background while the block runs; what it prints goes to the end of a file.

    Args:
        command: Program and arguments.
        log: The file.
        grace: Seconds that it has for its end before it is killed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        process = _start(command, file, (), grace)
    try:
        yield process
    finally:
        ask_to_end(process)
        _see_off(process, grace)


def ask_to_end(process: "subprocess.Popen[str]") -> None:
    """Have a `supervised` command begin to end, ahead of its block's end."""
    assert process.stdin is not None
    process.stdin.close()


def _start(command: Sequence[str], output: int | IO[str], hold: Sequence[int], grace: float) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-P", __file__, str(grace), *command],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=hold,
        # Programs of this environment are found whether or not it was activated.
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"},
        encoding="utf-8",
        errors="replace",
    )


def _read(stream: IO[str], lines: "queue.SimpleQueue[str | None]") -> None:
    with stream:
        for line in stream:
            lines.put(line.rstrip("\r\n"))
    lines.put(None)


def _pass_on(
    lines: "queue.SimpleQueue[str | None]", on_line: Callable[[str], None], deadline: float | None, tick: Callable[[], None]
) -> None:
    """Hand on lines until the last process has closed its end."""
    next_tick = 0.0
    while True:
        now = time.monotonic()
        if deadline is not None and now >= deadline:
            raise TimeoutError
        if now >= next_tick:
            tick()
            next_tick = now + TICK
        with suppress(queue.Empty):
            line = lines.get(timeout=TICK)
            if line is None:
                return
            on_line(line)


def _see_off(process: "subprocess.Popen[str]", grace: float) -> None:
    """Wait for the supervisor's end; it knows that it must end."""
    try:
        process.wait(grace + 2)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def supervise(command: Sequence[str], grace: float) -> int:
    """The supervisor's work; the command's exit status."""
    _become_subreaper()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # The caller's end of the pipe alone decides. The command does not inherit this, as it would SIG_IGN.
        signal.signal(number, lambda *_: None)
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    except OSError as error:
        sys.stderr.write(f"error: {command[0]} cannot be started ({error.strerror}): is it installed?\n")
        return 127
    over = threading.Event()

    def tell_after(wait: Callable[[], object]) -> None:
        wait()
        over.set()

    for wait in (child.wait, lambda: os.read(0, 1)):
        threading.Thread(target=tell_after, args=(wait,), daemon=True).start()
    over.wait()
    _end_descendants(grace)
    code = child.wait()
    return code if code >= 0 else 128 - code


def _become_subreaper() -> None:
    """Inherit what loses its parent, so that nothing below this process gets out of its sight. On Linux; elsewhere it might."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _end_descendants(grace: float) -> None:
    import psutil

    asked: set[psutil.Process] = set()
    deadline = time.monotonic() + grace
    while living := _living_descendants():
        is_over = time.monotonic() >= deadline
        for process in living if is_over else living - asked:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL if is_over else signal.SIGTERM)
        asked |= living
        time.sleep(0.05)


def _living_descendants() -> "set[psutil.Process]":
    import psutil

    living = set()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                living.add(process)
    return living


if __name__ == "__main__":
    sys.exit(supervise(sys.argv[2:], float(sys.argv[1])))
