"""A stage is run by DVC as it is; what came of it, and why it failed, is told in one line."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from dvc.schema import COMPILED_LOCKFILE_SCHEMA

from prosemill.errors import TRY_AGAIN, ProsemillError
from prosemill.orchestration.stages import (
    IN_USE,
    NUM_LAST_LINES,
    CommandFailedError,
    interruptible,
    leading_unchanged_stages,
    mend_files_of_dvc,
    readable,
    reproduce,
    run_command,
    stage_names,
)
from prosemill.workspace import LOCK
from tests.waiting import LIMIT, until

ROOT = Path(__file__).parents[2]
HOURS = 0.0005
PIPELINE = """
stages:
  write:
    cmd: sh write.sh
    params: [write]
    deps: [write.sh]
    outs: [written]
  count:
    cmd: sh count.sh
    deps: [count.sh, written]
    outs: [counted]
"""
WRITE = """
echo some words
echo 50% of them >&2
printf '\\r 10%%|#   | 1/9\\r100%%|####| 9/9 [00:01<00:00, 9.00it/s]\\n'
cat params.yaml > written
"""


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of git and DVC with two stages that were never run."""
    from dvc.repo import Repo

    folder: Path = tmp_path_factory.mktemp("pipeline") / "repository"
    folder.mkdir()
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    Repo.init(str(folder)).close()
    (folder / "dvc.yaml").write_text(PIPELINE, encoding="utf-8")
    (folder / "params.yaml").write_text("write: 1\n", encoding="utf-8")
    (folder / "write.sh").write_text(WRITE, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def snapshots(template: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The repository before each stage was run and after both: each run of a stage starts DVC, which takes seconds."""
    root = tmp_path_factory.mktemp("snapshots")
    folder = root / "repository"
    shutil.copytree(template, folder)
    (folder / "count.sh").write_text("cat written > counted", encoding="utf-8")
    found = {}

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DVC_SITE_CACHE_DIR", str(root / "site"))
        for stage in ("write", "count"):
            found[f"before {stage}"] = shutil.copytree(folder, root / f"before-{stage}")
            assert reproduce(stage, print) == "ran"

    return found | {"after both": folder}


@pytest.fixture
def enter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Path]:
    """Copy a repository and make it the current folder, with DVC's caches beside it."""

    def enter(source: Path) -> Path:
        folder = tmp_path / source.name
        shutil.copytree(source, folder)
        monkeypatch.chdir(folder)
        monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
        return folder

    return enter


@pytest.fixture
def repository(template: Path, enter: Callable[[Path], Path]) -> Path:
    """The repository whose stages were never run as the current folder."""
    return enter(template)


def count(script: str, seconds: float | None = None) -> list[str]:
    """Run the second stage with a shell script as its work; the lines that it shows."""
    Path("written").write_text("1", encoding="utf-8")
    Path("count.sh").write_text(script, encoding="utf-8")
    lines: list[str] = []
    reproduce("count", lines.append, seconds=seconds)
    return lines


def test_what_came_of_a_stage_is_told(repository: Path) -> None:
    def results(*, force: bool = False) -> tuple[str, list[str]]:
        lines: list[str] = []
        return reproduce("write", lines.append, force=force), [line for line in lines if line in ("some words", "50% of them")]

    words = ["some words", "50% of them"]
    assert results() == ("ran", words)
    assert results() == ("unchanged", [])
    (repository / "params.yaml").write_text("write: 2\n", encoding="utf-8")
    assert results() == ("ran", words)
    (repository / "params.yaml").write_text("write: 1\n", encoding="utf-8")
    assert results() == ("cached", [])
    assert (repository / "written").read_text(encoding="utf-8") == "write: 1\n"
    assert results(force=True) == ("ran", words)


def test_a_stage_shows_its_own_lines_and_no_hints(repository: Path) -> None:
    lines = count("echo one; echo; echo two > counted")
    assert lines[:3] == ["Running stage 'count':", "> sh count.sh", "one"]
    assert not [line for line in lines if "git add" in line or not line.strip()]


def test_only_the_stage_itself_is_run(repository: Path) -> None:
    count("cat written > counted")
    assert (repository / "counted").read_text(encoding="utf-8") == "1", "the stage before it was not"


def test_stages_before_the_first_that_has_changed_need_not_be_run(snapshots: dict[str, Path], enter: Callable[[Path], Path]) -> None:
    enter(snapshots["before write"])
    assert leading_unchanged_stages() == [], "none was ever run"
    enter(snapshots["before count"])
    assert leading_unchanged_stages() == ["write"]
    folder = enter(snapshots["after both"])
    assert leading_unchanged_stages() == ["write", "count"]
    Path("counted").unlink()
    assert leading_unchanged_stages() == ["write"], "an output that is gone is a change"
    (folder / "params.yaml").write_text("write: 2\n", encoding="utf-8")
    reproduce("count", print)
    assert leading_unchanged_stages() == [], "what comes after a change may change too"


@pytest.mark.parametrize("cut", ["", "{"])
def test_a_kill_of_dvc_does_not_keep_the_next_one_from_running(snapshots: dict[str, Path], enter: Callable[[Path], Path], cut: str) -> None:
    enter(snapshots["before count"])
    IN_USE.write_text(cut, encoding="utf-8")
    assert b"rwlock" in subprocess.run([sys.executable, "-m", "dvc", "status"], capture_output=True, check=False).stderr
    assert leading_unchanged_stages() == ["write"]
    IN_USE.write_text('{"a": {}}', encoding="utf-8")
    mend_files_of_dvc()
    assert IN_USE.exists(), "another command of DVC may be at work"


def commit_lock(text: str) -> None:
    """Commit this as dvc.lock, and leave the one that there is."""
    present = LOCK.read_bytes()
    LOCK.write_text(text, encoding="utf-8")
    subprocess.run(["git", "add", "dvc.lock"], check=True)
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "Run"], check=True)
    LOCK.write_bytes(present)


@pytest.mark.parametrize("share", [0.0, 0.6])
@pytest.mark.parametrize("is_committed", [True, False])
def test_a_lock_that_a_kill_has_cut_short_costs_no_stage(
    snapshots: dict[str, Path], enter: Callable[[Path], Path], share: float, is_committed: bool
) -> None:
    enter(snapshots["after both"])
    whole = LOCK.read_text(encoding="utf-8")
    if is_committed:
        commit_lock((snapshots["before count"] / LOCK).read_text(encoding="utf-8"))
    LOCK.write_text(whole[: int(share * len(whole))], encoding="utf-8")
    assert "ran" not in [reproduce(stage, print) for stage in ("write", "count")]
    assert LOCK.read_text(encoding="utf-8") == whole


@pytest.mark.parametrize("is_committed", [True, False])
def test_a_lock_cut_anywhere_stays_if_dvc_reads_it_and_else_is_the_committed_one(
    snapshots: dict[str, Path], enter: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch, is_committed: bool
) -> None:
    enter(snapshots["after both"])
    monkeypatch.setattr(time, "sleep", lambda _: None)
    whole = LOCK.read_text(encoding="utf-8")
    committed = (snapshots["before count"] / LOCK).read_text(encoding="utf-8") if is_committed else None
    if committed is not None:
        commit_lock(committed)

    num_mended = 0
    for length in range(0, len(whole), 9):
        LOCK.write_text(whole[:length], encoding="utf-8")
        mend_files_of_dvc()
        left = LOCK.read_text(encoding="utf-8") if LOCK.exists() else None
        if left != whole[:length]:
            assert left == committed
            num_mended += 1
        if left is not None:
            COMPILED_LOCKFILE_SCHEMA(yaml.safe_load(left))

    assert num_mended > 20


def test_a_lock_that_is_just_being_written_is_left_alone(
    snapshots: dict[str, Path], enter: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(snapshots["before count"])
    whole = LOCK.read_text(encoding="utf-8").replace("written", "another")
    waits: list[float] = []

    def write_while_waiting(seconds: float) -> None:
        waits.append(seconds)
        LOCK.write_text(whole, encoding="utf-8")

    LOCK.write_text("{", encoding="utf-8")
    monkeypatch.setattr(time, "sleep", write_while_waiting)
    mend_files_of_dvc()
    assert waits == [0.5], "what is broken is looked at again"
    assert LOCK.read_text(encoding="utf-8") == whole


def test_a_failure_is_the_stages_own_line_and_what_it_printed_last(repository: Path) -> None:
    with pytest.raises(CommandFailedError) as raised:
        count("seq 100; echo 'error: no text: give it some' >&2; exit 1")
    error = raised.value
    summary, blank, *last_lines = str(error).split("\n")
    assert (error.summary, error.is_temporary, error.was_killed) == ("count failed: no text: give it some", False, False)
    assert (summary, blank, len(last_lines)) == (error.summary, "", NUM_LAST_LINES)
    place = last_lines.index("error: no text: give it some")
    assert last_lines[place - 3 : place] == ["98", "99", "100"]
    assert last_lines[-1].startswith("ERROR: failed to reproduce 'count'")


@pytest.mark.parametrize(
    ("script", "summary", "is_temporary", "was_killed"),
    [
        ("exit 3", "count failed: ERROR: failed to reproduce 'count': failed to run: sh count.sh, exited with 3", False, False),
        (f"echo 'error: no network'; exit {TRY_AGAIN}", "count failed: no network", True, False),
        ("kill -KILL $$", "count was killed: run it again to go on where it was; if memory ran out, take less at a time", False, True),
        ("sh -c 'kill -KILL $$'", "count was killed: run it again to go on where it was", False, True),  # the shell lives to tell
        ("true", "count failed: ERROR: failed to reproduce 'count': output 'counted' does not exist", False, False),
    ],
)
def test_failures_are_told_apart(repository: Path, script: str, summary: str, is_temporary: bool, was_killed: bool) -> None:
    with pytest.raises(CommandFailedError) as raised:
        count(script)
    error = raised.value
    assert error.summary.startswith(summary)
    assert (error.is_temporary, error.was_killed) == (is_temporary, was_killed)


def test_a_stage_over_its_time_is_stopped_and_can_be_run_again(repository: Path) -> None:
    with pytest.raises(CommandFailedError) as raised:
        count("sleep 120", seconds=3600 * HOURS)
    advice = "give it more time (`hours` of its deployment), or run it again to go on"
    assert raised.value.summary == f"count took more than 0.0005 hours and was stopped: {advice}"
    assert not raised.value.was_killed, "trying again at once would take as long"
    assert "done" in count("echo done; touch counted"), "its DVC left no lock behind"


def test_another_command_fails_as_a_stage_does() -> None:
    lines: list[str] = []
    with pytest.raises(CommandFailedError, match=r"^register failed: no model\n\nbefore\nerror: no model$"):
        run_command("register", ["sh", "-c", "echo before; echo 'error: no model'; exit 1"], lines.append)
    assert lines == ["before", "error: no model"]
    with pytest.raises(CommandFailedError, match=r"^register failed: exit status 2$"):
        run_command("register", ["sh", "-c", "exit 2"], lines.append)
    with pytest.raises(CommandFailedError, match=r"^register failed: no-such-program cannot be started .*: is it installed\?"):
        run_command("register", ["no-such-program"], lines.append)
    with pytest.raises(CommandFailedError, match=r"^register was killed") as raised:
        run_command("register", ["sh", "-c", "kill -KILL $$"], lines.append)
    assert raised.value.was_killed


@pytest.mark.parametrize(
    "line",
    [
        "",
        "   ",
        "\x1b[2K",
        "train:  50%|#####     | 30/60 steps [00:10<00:10, loss 2.1]",
        "Map: 100%|██████████| 8/8",
        "\rFetching:   0%|          | 0/3 [00:00<?, ?it/s]",
        "3it [00:01, 2.95it/s]",
        "Downloading 1.00MB [00:01, 512B/s]",
        "12files [00:01, 9.5files/s]",
        "Downloading 1.20MB [00:01, 900kB/s]",
        "2it [00:05, 2.50s/it]",
        "Generating train split: 1000 examples [00:01, 812.50 examples/s]",
        "Data and pipelines are up to date.",
        "To track the changes with git, run:",
        "\tgit add dvc.lock",
        "To enable auto staging, run:",
        "\tdvc config core.autostage true",
        "Use `dvc push` to send your updates to remote storage.",
    ],
)
def test_bars_hints_and_nothing_are_left_out(line: str) -> None:
    assert readable(line) is None


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("train: 30/60 steps in 10 s, loss 2.10", None),
        ("tokenize: 8/8 shards in 3 s, 1,234,567 tokens/s", None),
        ("50% of the documents are duplicates", None),
        ("validation loss 2.5 (-10 %)", None),
        ("loss 100%", None),
        ("error: the disk is full while writing data/corpus: free some space", None),
        ("    indented, as in a stack trace", None),
        ("ends in blanks  \t", "ends in blanks"),
        ("\x1b[31mERROR\x1b[39m: failed\x1b[0m", "ERROR: failed"),
        ("half a line\rthe whole line", "the whole line"),
        ("  5%|bar|\rdone", "done"),
        ("日本語 – 10 %", None),
    ],
)
def test_other_lines_stay(line: str, shown: str | None) -> None:
    assert readable(line) == (shown or line)


def test_stages_come_in_the_order_of_the_file(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stage_names() == ["write", "count"]
    monkeypatch.chdir(ROOT)
    assert stage_names() == list(yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"])


def test_a_missing_pipeline_is_one_line(workspace: Path) -> None:
    with pytest.raises(ProsemillError, match=r"^dvc\.yaml is missing: run this in the repository's root$"):
        stage_names()


@pytest.mark.parametrize("content", [b"stages: [", b"\xff", b"", b"steps: {}"])
def test_a_broken_pipeline_is_one_line(workspace: Path, content: bytes) -> None:
    Path("dvc.yaml").write_bytes(content)
    with pytest.raises(ProsemillError, match=r"^dvc\.yaml is broken \(.+\): mend it, or `git checkout dvc\.yaml`$"):
        stage_names()


def test_every_stage_has_its_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.pipeline import Hours

    monkeypatch.chdir(ROOT)
    assert set(Hours.model_fields) == {*stage_names(), "registration", "gate", "package"}


class StopError(Exception):
    """What a tick raises."""


def stop() -> None:
    raise StopError


def test_work_in_this_process_ends_after_its_time_and_by_what_a_tick_raises() -> None:
    too_long = pytest.raises(CommandFailedError, match=r"^gate took more than 0.0005 hours and was stopped: ")
    with too_long, interruptible("gate", seconds=3600 * HOURS, tick=lambda: None):
        time.sleep(LIMIT)
    with pytest.raises(StopError), interruptible("gate", seconds=LIMIT, tick=stop):
        time.sleep(LIMIT)


def test_work_in_this_process_ends_as_it_would_alone_if_nothing_ends_it() -> None:
    ticks: list[None] = []
    with interruptible("gate", seconds=LIMIT, tick=lambda: ticks.append(None)):
        until(lambda: ticks, "a tick while the work is done")
    with pytest.raises(ZeroDivisionError), interruptible("gate", seconds=LIMIT, tick=lambda: None):
        _ = 1 / 0
    with pytest.raises(KeyboardInterrupt), interruptible("gate", seconds=LIMIT, tick=lambda: None):
        signal.raise_signal(signal.SIGINT)
