"""What a supervised command prints and ends with is passed on, and nothing of it outlives its caller, however that ends."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from prosemill import supervised as supervised_module
from prosemill.supervised import GRACE, run_supervised, supervised
from tests.waiting import LIMIT, until

ROOT = Path(__file__).parents[1]
SHORT_GRACE = 1.0
STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid()  # out of the command's process group, below a process that is gone at once
        if os.fork():
            os._exit(0)
os.write(1, f"{os.getpid()}\\n".encode())
time.sleep(120)
"""
"""Three processes that do not hear SIGTERM, one in a session of its own."""
NUM_STUBBORN = 3
CALLER = """
import sys
from contextlib import ExitStack
from pathlib import Path
from prosemill import supervised
from prosemill.locks import alone

grace, kind, *command = sys.argv[1:]
supervised.GRACE = float(grace)
if kind == "background":
    with supervised.supervised(command, Path("log")) as process:
        process.wait()
else:
    with alone(Path("lock"), "work") as lock:
        supervised.run_supervised(command, lambda line: print(line, file=open("log", "a"), flush=True), hold=[lock.fileno()])
"""


class NotWantedError(Exception):
    """What a caller's function raises."""


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A supervisor that waits no seven seconds before it kills."""
    monkeypatch.setattr(supervised_module, "GRACE", SHORT_GRACE)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller and a supervisor that would wait for the suite's limit before they kill: what ends within it ends by itself."""
    monkeypatch.setattr(supervised_module, "GRACE", float(LIMIT))


@pytest.fixture
def lines() -> list[str]:
    """What a command has printed."""
    return []


def shell(text: str) -> list[str]:
    return ["/bin/sh", "-c", text]


def let_time_be_over(monkeypatch: pytest.MonkeyPatch, lines: list[str], num_lines: int) -> None:
    """Have the caller's clock jump beyond every limit once so many lines have come, however long the command took to print them."""

    def now() -> float:
        return time.monotonic() + (10 * LIMIT if len(lines) >= num_lines else 0)

    monkeypatch.setattr(supervised_module, "time", SimpleNamespace(monotonic=now))


def is_alive(pid: int) -> bool:
    """Whether a process still works; one that is dead and not yet waited for does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def has_grown(path: Path, num_before: int) -> bool:
    return path.is_file() and len(path.read_text()) > num_before


@contextmanager
def started_caller(folder: Path, grace: float, kind: str, command: list[str], num_pids: int) -> Iterator[tuple[psutil.Popen, list[int]]]:
    """A process that runs a command under supervision, and the process ids of this command, which prints them."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    caller = psutil.Popen([sys.executable, "-c", CALLER, str(grace), kind, *command], cwd=folder, env=environment)
    pids: list[int] = []
    try:
        until(lambda: (folder / "log").is_file() and len((folder / "log").read_text().splitlines()) >= num_pids, "all say who they are")
        pids += map(int, (folder / "log").read_text().split())
        assert all(is_alive(pid) for pid in pids)
        yield caller, pids
    finally:
        for pid in (caller.pid, *pids):
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)
        caller.wait()


def test_a_line_comes_while_the_command_still_runs(workspace: Path, lines: list[str]) -> None:
    def read(line: str) -> None:
        lines.append(line)
        Path("seen").touch()

    # The command ends only when its first line was read.
    code = run_supervised(shell("echo first; until [ -e seen ]; do sleep 0.02; done; echo second >&2"), read, seconds=LIMIT)
    assert (code, lines) == (0, ["first", "second"])


def test_lines_of_any_bytes_and_any_number_come_in_order(lines: list[str]) -> None:
    code = run_supervised(shell(r"printf '\377 odd\nno end'; seq 5000; printf 'last'"), lines.append, seconds=LIMIT)
    assert (code, lines[0], lines[1], lines[-1]) == (0, "\N{REPLACEMENT CHARACTER} odd", "no end1", "last")
    assert lines[2:-1] == [str(number) for number in range(2, 5001)]


def test_a_command_reads_nothing(lines: list[str]) -> None:
    assert run_supervised(["cat"], lines.append, seconds=LIMIT) == 0
    assert lines == []


@pytest.mark.parametrize(
    ("text", "code"),
    [("true", 0), ("exit 75", 75), ("kill -KILL $$", 128 + signal.SIGKILL), ("kill -TERM $$", 128 + signal.SIGTERM)],
)
def test_the_status_is_the_commands_own(text: str, code: int, lines: list[str]) -> None:
    assert run_supervised(shell(text), lines.append, seconds=LIMIT) == code


def test_a_missing_program_is_one_line(lines: list[str]) -> None:
    assert run_supervised(["no-such-program", "x"], lines.append, seconds=LIMIT) == 127
    assert lines == ["error: no-such-program cannot be started (No such file or directory): is it installed?"]


def test_programs_of_this_environment_are_found_though_it_is_not_activated(lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.defpath)
    assert run_supervised(["sh", "-c", "command -v dvc"], lines.append, seconds=LIMIT) == 0
    assert lines == [str(Path(sys.executable).parent / "dvc")]


def test_the_command_hears_signals_as_a_program_of_a_shell_does(lines: list[str]) -> None:
    text = """
import signal
for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGPIPE"):
    handler = signal.getsignal(getattr(signal, name))
    print(name, handler in (signal.SIG_DFL, signal.default_int_handler))
print("blocked", sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])))
"""
    assert run_supervised([sys.executable, "-S", "-c", text], lines.append, seconds=LIMIT) == 0
    # SIGPIPE is ignored by Python itself.
    assert lines == ["SIGTERM True", "SIGINT True", "SIGHUP True", "SIGPIPE False", "blocked []"]


@pytest.mark.usefixtures("short_grace")
def test_time_that_is_over_ends_every_process_of_the_command(lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    let_time_be_over(monkeypatch, lines, NUM_STUBBORN)
    with pytest.raises(TimeoutError):
        run_supervised([sys.executable, "-c", STUBBORN], lines.append, seconds=LIMIT)
    assert len(lines) == NUM_STUBBORN
    assert not any(is_alive(int(pid)) for pid in lines)


@pytest.mark.usefixtures("patient")
def test_a_command_is_asked_to_end_before_it_is_killed(workspace: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    command = shell("trap 'echo saved > saved; echo saved; exit' TERM; echo ready; while :; do sleep 0.05; done")
    let_time_be_over(monkeypatch, lines, 1)
    begin = time.monotonic()
    with pytest.raises(TimeoutError):
        run_supervised(command, lines.append, seconds=LIMIT)
    assert Path("saved").read_text() == "saved\n"
    assert (lines[0], lines[-1]) == ("ready", "saved"), "its last words come too"
    assert time.monotonic() - begin < LIMIT, "who ends when asked is not waited for"


def _of_a_signal(number: int, _: object) -> None:
    raise NotWantedError(number)


@pytest.mark.parametrize("who", ["on_line", "tick", "a signal handler"])
def test_what_the_callers_functions_raise_ends_the_command(who: str, lines: list[str]) -> None:
    error = NotWantedError(who)

    def read(line: str) -> None:
        lines.append(line)
        if who == "a signal handler" and len(lines) == 1:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
        elif who == "on_line":
            raise error

    def tick() -> None:
        if who == "tick" and lines:
            raise error

    command = shell("trap 'echo last; exit' TERM; echo $$; sleep 120 & while :; do wait; done")
    before = signal.signal(signal.SIGALRM, _of_a_signal)
    try:
        with pytest.raises(NotWantedError) as raised:
            run_supervised(command, read, seconds=LIMIT, tick=tick)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)  # or it would end this process, without a word
        signal.signal(signal.SIGALRM, before)
    assert raised.value is error or who == "a signal handler"
    assert lines[-1] == "last", "its last words come too"
    assert not is_alive(int(lines[0]))


def test_tick_comes_about_twice_a_second_however_much_is_printed(lines: list[str]) -> None:
    ticks: list[float] = []
    command = shell("seq 3000; sleep 1.2; seq 3000")
    begin = time.monotonic()
    run_supervised(command, lines.append, seconds=LIMIT, tick=lambda: ticks.append(time.monotonic()))
    assert 2 <= len(ticks) <= 2 + 2 * (time.monotonic() - begin)


@pytest.mark.usefixtures("patient")
def test_what_a_command_leaves_in_the_background_ends_with_it(workspace: Path, lines: list[str]) -> None:
    left = f"echo $$; touch left-$$; exec sleep {2 * LIMIT} >/dev/null 2>&1 </dev/null"
    both_are_there = "[ $(ls | grep -c left-) = 2 ]"
    begin = time.monotonic()
    command = shell(f"sh -c '{left}' & setsid sh -c '{left}' & until {both_are_there}; do sleep 0.02; done; exit 3")
    assert run_supervised(command, lines.append, seconds=LIMIT) == 3
    assert len(lines) == 2
    assert not any(is_alive(int(pid)) for pid in lines)
    assert time.monotonic() - begin < LIMIT


def test_a_command_in_the_background_ends_with_the_block(workspace: Path) -> None:
    log = Path("logs/command.log")
    for _ in range(2):
        num_before = len(log.read_text()) if log.is_file() else 0
        with supervised(shell("echo $$; exec sleep 120"), log) as process:
            until(partial(has_grown, log, num_before), "it goes on")
            assert process.poll() is None
        assert process.returncode == 128 + signal.SIGTERM
    pids = [int(line) for line in log.read_text().splitlines() if line.isdecimal()]
    assert len(pids) == 2, "what they print goes to the end of the file"
    assert not any(is_alive(pid) for pid in pids)


def test_a_command_in_the_background_that_ends_is_seen(workspace: Path) -> None:
    with supervised(shell("exit 5"), Path("log")) as process:
        assert process.wait(LIMIT) == 5


@pytest.mark.parametrize("kind", ["foreground", "background"])
def test_a_killed_caller_leaves_nothing(tmp_path: Path, kind: str) -> None:
    command = shell("echo $$; setsid sh -c 'echo $$; sleep 120; true' & sleep 120; true")
    with started_caller(tmp_path, GRACE, kind, command, num_pids=2) as (caller, pids):
        processes = {process.pid for process in caller.children(recursive=True)}
        assert processes > set(pids), "the supervisor stands between"
        caller.kill()
        until(lambda: not any(is_alive(pid) for pid in processes), "no process is left")


def test_a_held_descriptor_keeps_its_lock_until_the_last_process_is_gone(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STUBBORN]
    with (
        started_caller(tmp_path, SHORT_GRACE, "foreground", command, NUM_STUBBORN) as (caller, pids),
        (tmp_path / "lock").open() as lock,
    ):
        caller.kill()
        caller.wait()

        def is_free() -> bool:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        has_ended_first = is_free()
        assert not (has_ended_first and any(is_alive(pid) for pid in pids)), "its holder is dead, but what that started is not"
        until(is_free, "the lock is free")
        assert not any(is_alive(pid) for pid in pids)


def test_signals_to_the_supervisor_end_nothing(workspace: Path) -> None:
    with supervised(shell("echo $$; sleep 0.5; exit 4"), Path("log")) as process:
        until(lambda: Path("log").is_file() and Path("log").read_text(), "it has begun")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            process.send_signal(number)
        assert process.wait(LIMIT) == 4, "the caller alone decides"


def test_the_supervisor_takes_no_file_beside_it_for_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str]) -> None:
    monkeypatch.setattr(supervised_module, "__file__", shutil.copy(supervised_module.__file__, tmp_path))
    for name in ("signal", "subprocess", "queue", "psutil"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('taken for the library')\n", encoding="utf-8")
    assert run_supervised(["true"], lines.append, seconds=LIMIT) == 0
    assert lines == []


def test_a_program_runs_it_too() -> None:
    command = [sys.executable, "-P", supervised_module.__file__, "1", "/bin/sh", "-c", "echo out; echo error >&2; exit 6"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert (process.stdout.read(), process.stderr.read(), process.wait(LIMIT)) == ("out\n", "error\n", 6)
