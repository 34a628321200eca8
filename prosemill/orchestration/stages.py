"""The stages of dvc.yaml, each run by `dvc repro` in a process group of its own.

leading_unchanged_stages()                # ["download", "tokenize"]: they need not be run
reproduce("train", print, seconds=3600)   # "ran", "cached" or "unchanged"
"""

import json
import re
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Literal

import yaml

from prosemill.errors import TRY_AGAIN, ProsemillError
from prosemill.supervised import TICK, run_supervised
from prosemill.workspace import LOCK

PIPELINE = Path("dvc.yaml")
IN_USE = Path(".dvc/tmp/rwlock")
"""DVC's list of the files that its commands are at."""
NUM_LAST_LINES = 50

Result = Literal["ran", "cached", "unchanged"]

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
BAR = re.compile(r"\d+%\||\[(\d+:)+\d\d[<,]")  # of tqdm, which ends in times in brackets
HINTS = (
    "Data and pipelines are up to date",
    "To track the changes with git",
    "git add ",
    "To enable auto staging",
    "dvc config core.autostage",
    "Use `dvc push`",
)
STATUS = re.compile(r"exited with (-?\d+)")
KILLED = range(129, 193)  # exit statuses of a shell whose command was killed: 128 and the signal's number


class CommandFailedError(ProsemillError):
    """A command that did not end well, in one line (`summary`); the text goes on with the last lines that it printed."""

    def __init__(self, summary: str, last_lines: Sequence[str] = (), *, is_temporary: bool = False, was_killed: bool = False) -> None:
        super().__init__("\n".join([summary, *([""] if last_lines else []), *last_lines]))
        self.summary, self.is_temporary, self.was_killed = summary, is_temporary, was_killed


def stage_names() -> list[str]:
    """The stages of dvc.yaml, in the order in which they run.

    Raises:
        ProsemillError: there is no dvc.yaml here, or it is broken.
    """
    try:
        return list(yaml.safe_load(PIPELINE.read_text(encoding="utf-8"))["stages"])
    except FileNotFoundError:
        raise ProsemillError(f"{PIPELINE} is missing: run this in the repository's root") from None
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ProsemillError(f"{PIPELINE} is broken ({' '.join(str(error).split())}): mend it, or `git checkout {PIPELINE}`") from None


def mend_files_of_dvc(root: Path = Path()) -> None:
    """Mend what DVC does not write in one go, and without which it runs no more, where a kill has cut it short.

    Its list of files in use is removed. dvc.lock becomes what it is in the last commit: what has run since then is in DVC's cache of runs,
    and comes from there. What is broken twice, a moment apart, is nobody's work.
    """
    path, lock = root / IN_USE, root / LOCK
    if _stays_broken(path, json.loads):
        path.unlink(missing_ok=True)
    if _stays_broken(lock, _validate_lock):
        restored = subprocess.run(
            ["git", "restore", "--source=HEAD", "--worktree", "--", lock.name], cwd=root, capture_output=True, check=False
        )
        if restored.returncode != 0:  # it was never committed
            lock.unlink(missing_ok=True)


def _stays_broken(path: Path, validate: Callable[[str], object]) -> bool:
    """Whether a file is twice there and no text that a function takes without a `ValueError`."""
    for wait in (0.5, 0.0):
        try:
            validate(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return False
        except ValueError:
            time.sleep(wait)
        else:
            return False
    return True


def _validate_lock(text: str) -> None:
    """Raises `ValueError` if DVC would not read this as a dvc.lock."""
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from voluptuous import Invalid

    try:
        COMPILED_LOCKFILE_SCHEMA(yaml.safe_load(text) or {})
    except (yaml.YAMLError, Invalid) as error:
        raise ValueError(error) from None


def leading_unchanged_stages(*, tick: Callable[[], None] | None = None, hold: Sequence[int] = ()) -> list[str]:
    """The stages, in their order, before the first that has changed: asked at once, which takes as long as to ask for one.

    Args:
        tick: As in `run_supervised`.
        hold: As in `run_supervised`.

    Raises:
        CommandFailedError: `dvc status` failed.
    """
    mend_files_of_dvc()
    lines: list[str] = []
    run_command("status", ["dvc", "status", "--json"], lines.append, tick=tick, hold=hold)
    answer = next((line for line in lines if line.startswith("{")), None)
    if answer is None:
        return []  # nothing is known to be unchanged
    changed = json.loads(answer)
    return list(takewhile(lambda name: name not in changed, stage_names()))


def reproduce(
    stage: str,
    on_line: Callable[[str], None],
    *,
    force: bool = False,
    seconds: float | None = None,
    tick: Callable[[], None] | None = None,
    hold: Sequence[int] = (),
) -> Result:
    """Bring a stage up to date; those before it must be.

    Args:
        stage: Its name in dvc.yaml.
        on_line: Called with every line that it prints, without bars and DVC's hints.
        force: Whether to run it though nothing has changed.
        seconds: The most that it may take.
        tick: As in `run_supervised`.
        hold: As in `run_supervised`.

    Returns:
        `ran`; `cached` if its outputs came from an earlier run of the same; `unchanged` if they were here.

    Raises:
        CommandFailedError: it failed, was killed or took longer.
    """
    results: dict[str, Result] = {
        f"Running stage '{stage}'": "ran",
        f"Stage '{stage}' is cached": "cached",
        f"Stage '{stage}' didn't change": "unchanged",
    }
    found: list[Result] = []

    def read(line: str) -> None:
        found.extend(result for beginning, result in results.items() if line.startswith(beginning))
        on_line(line)

    mend_files_of_dvc()
    run_command(
        stage, ["dvc", "repro", "--single-item", *(["--force"] if force else []), stage], read, seconds=seconds, tick=tick, hold=hold
    )
    assert found, f"dvc does not say what it did with {stage}"
    return found[-1]


def run_command(
    name: str,
    command: Sequence[str],
    on_line: Callable[[str], None],
    *,
    seconds: float | None = None,
    tick: Callable[[], None] | None = None,
    hold: Sequence[int] = (),
) -> None:
    """Run a command as `reproduce` does.

    Raises:
        CommandFailedError: it failed, was killed or took longer; `name` is what the message calls it.
    """
    last_lines: deque[str] = deque(maxlen=NUM_LAST_LINES)

    def read(line: str) -> None:
        shown = readable(line)
        if shown is not None:
            last_lines.append(shown)
            on_line(shown)

    try:
        code = run_supervised(command, read, seconds=seconds, tick=tick, hold=hold)
    except TimeoutError:
        assert seconds is not None
        raise _too_long(name, seconds, last_lines) from None
    if code != 0:
        raise _failure(name, code, last_lines)


@contextmanager
def interruptible(name: str, *, seconds: float, tick: Callable[[], None]) -> Iterator[None]:
    """Have what the main thread does in the block end as a command of `run_command` does: after some time, or by what `tick` raises.

    Raises:
        CommandFailedError: it took longer.
        BaseException: what `tick` raised.
    """
    over, raised, main_thread = threading.Event(), list[BaseException](), threading.get_ident()

    def watch() -> None:
        deadline = time.monotonic() + seconds
        try:
            while not over.wait(TICK):
                tick()
                if time.monotonic() >= deadline:
                    raise _too_long(name, seconds)
        except BaseException as error:  # noqa: BLE001 - is raised again where the block stands
            raised.append(error)
            signal.pthread_kill(main_thread, signal.SIGINT)  # which ends a wait for a lock or a server as well

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        try:
            yield
        finally:
            over.set()
            watcher.join()
    except KeyboardInterrupt:
        if raised:
            raise raised[0] from None
        raise


def readable(line: str) -> str | None:
    """A line as a log should have it; None for bars, blank lines and DVC's hints."""
    shown = ANSI.sub("", line.rpartition("\r")[2]).rstrip()
    if not shown.strip() or BAR.search(shown) or shown.lstrip().startswith(HINTS):
        return None
    return shown


def _too_long(name: str, seconds: float, last_lines: Sequence[str] = ()) -> CommandFailedError:
    remedy = "give it more time (`hours` of its deployment), or run it again to go on"
    return CommandFailedError(f"{name} took more than {seconds / 3600:g} hours and was stopped: {remedy}", last_lines)


def _failure(name: str, code: int, last_lines: Sequence[str]) -> CommandFailedError:
    """What the command's own process ended with stands in DVC's last words."""
    statuses = [int(status) for line in last_lines for status in STATUS.findall(line)]
    status = statuses[-1] if statuses else code
    was_killed = status < 0 or status in KILLED
    said = [line.removeprefix("error: ") for line in last_lines if line.startswith("error: ")]
    if was_killed:
        why = "was killed: run it again to go on where it was; if memory ran out, take less at a time"
        return CommandFailedError(f"{name} {why}", last_lines, was_killed=True)
    why = said[-1] if said else next((line for line in reversed(last_lines) if line.startswith("ERROR")), f"exit status {status}")
    return CommandFailedError(f"{name} failed: {why}", last_lines, is_temporary=status == TRY_AGAIN)
