"""The shards engine: same bytes whatever the workers and the kills; nothing half written is trusted; every mistake is one line."""

import errno
import fcntl
import io
import os
import pty
import random
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from prosemill import console, shards
from prosemill.console import progress
from prosemill.digests import sha256_of_file
from prosemill.errors import ProsemillError
from prosemill.shards import MANIFEST, HashingWriter, num_workers, read_manifest, rows_of_split, run_shards, write_durably
from prosemill.workspace import SHARD_WORK
from tests import shard_work
from tests.campaigns import repeats, seed
from tests.shard_work import LOG, OUTPUT, tasks_of
from tests.waiting import LIMIT, until

ROOT = Path(__file__).parents[1]
STEPS = ("os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "open")  # audit events before which a kill is tried


@pytest.fixture(autouse=True)
def one_worker(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test runs in an empty workspace, in this process unless it asks for more."""
    monkeypatch.setenv("PROSEMILL_WORKERS", "1")
    return workspace


def tree(folder: Path = OUTPUT) -> dict[str, bytes]:
    """Every file's bytes, by its path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def scratch() -> Path:
    """The only folder of unfinished work."""
    (folder,) = (path for path in SHARD_WORK.iterdir() if path.is_dir())
    return folder


def start(amount: int, seconds: float, workers: int) -> "subprocess.Popen[str]":
    """The stage as a process group of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PROSEMILL_WORKERS": str(workers)}
    command = [sys.executable, "-m", "tests.shard_work", str(amount), str(seconds)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)


def test_manifest_tells_each_file() -> None:
    rows = shard_work.run(5)
    assert rows == read_manifest(OUTPUT)
    assert [row["file"] for row in rows] == sorted(name for task in tasks_of(5) for name in task.outputs)
    for row in rows:
        assert row["sha256"] == sha256_of_file(OUTPUT / row["file"])
        assert row["num_bytes"] == (OUTPUT / row["file"]).stat().st_size
        assert row["num_tokens"] == 1000
    assert [row["file"] for row in rows_of_split(rows, "b")] == ["b/001.bin", "b/001.txt", "b/003.bin", "b/003.txt"]


def test_same_bytes_for_any_number_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    trees = []
    for workers in (1, 2, 3):
        monkeypatch.setenv("PROSEMILL_WORKERS", str(workers))
        shutil.rmtree(SHARD_WORK, ignore_errors=True)
        shard_work.run(7)
        trees.append(tree())
    assert len(trees[0]) == 15
    assert trees[0] == trees[1] == trees[2]


def run_until_step(kill_at: int) -> int:
    """Run the stage in a forked child that kills itself before its `kill_at`-th step; returns the wait status."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        if steps == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    write = HashingWriter.write

    def counted_write(self: HashingWriter, data: Any) -> int:
        step()
        return write(self, data)

    def counted_fsync(fd: Any) -> None:
        assert isinstance(fd, int)
        step()

    HashingWriter.write, os.fsync = counted_write, counted_fsync  # type: ignore[method-assign]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in STEPS and not (event == "open" and arguments[2] & os.O_ACCMODE == os.O_RDONLY):
            step()

    sys.addaudithook(hook)
    shard_work.run(2)
    os._exit(0)


@pytest.mark.parametrize("before", ["nothing", "an output", "an output and its shards"])
def test_a_kill_before_any_step_costs_nothing(before: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # what a killed process wrote is safe without; it takes most of the time
    monkeypatch.setattr(shards, "sha256_of_tree", lambda _: "code")
    shard_work.run(2)
    expected = tree()
    for kill_at in range(1, 1000):
        if before != "an output and its shards":
            shutil.rmtree(SHARD_WORK)
        if before == "nothing":
            shutil.rmtree(OUTPUT)
        status = run_until_step(kill_at)
        if (OUTPUT / MANIFEST).exists():  # whoever trusts the folder reads the manifest first
            assert tree() == expected
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        shard_work.run(2)
        assert tree() == expected
        assert not list(SHARD_WORK.rglob("*.part"))
    else:
        pytest.fail("the stage never ended")
    assert kill_at > (20 if before == "an output and its shards" else 60)


def test_random_kills_of_the_parent_end_its_workers_and_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    shard_work.run(8, seconds=0.02)
    expected = tree()
    shutil.rmtree(OUTPUT)
    shutil.rmtree(SHARD_WORK)
    monkeypatch.setenv("PROSEMILL_WORKERS", "2")
    generator = random.Random(seed())  # noqa: S311
    for _ in range(repeats(few=2, many=30)):
        process = start(8, seconds=0.02, workers=2)
        time.sleep(generator.uniform(0.0, 1.5))
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.communicate()
        _, alive = psutil.wait_procs(family, timeout=LIMIT)
        assert not alive, f"workers outlived their parent (seed {seed()})"
    shard_work.run(8, seconds=0.02)
    assert tree() == expected, f"seed {seed()}"


def test_finished_shards_are_kept_and_said_to_be(capfd: pytest.CaptureFixture[str]) -> None:
    def run() -> None:
        run_shards("count", shard_work.count_and_log, tasks_of(4), config={}, output=OUTPUT)

    run()
    capfd.readouterr()
    (scratch() / "b/001.txt.json").unlink()
    shutil.rmtree(OUTPUT)  # as DVC does
    run()
    assert LOG.read_text().split() == ["0", "1", "2", "3", "1"]
    assert "3 of 4 shards were whole from an earlier run and were kept" in capfd.readouterr().err


def damaged(kind: str, path: Path) -> None:
    sidecar = path.with_name(path.name + ".json")
    content = path.read_bytes()
    path.unlink()  # the output's hard link keeps the good bytes
    match kind:
        case "file gone":
            return
        case "file short":
            path.write_bytes(content[:-1])
        case "file of the same size":
            path.write_bytes(b"X" + content[1:])
        case "file empty":
            path.write_bytes(b"")
        case _:
            path.write_bytes(content)
    match kind:
        case "sidecar short":
            sidecar.write_bytes(sidecar.read_bytes()[:-10])
        case "sidecar empty":
            sidecar.write_bytes(b"")
        case "sidecar of another kind":
            sidecar.write_text('["sha256"]\n')
        case "sidecar without digest":
            sidecar.write_text("{}\n")
        case "sidecar not UTF-8":
            sidecar.write_bytes(b"\xff\xfe")


@pytest.mark.parametrize(
    "kind",
    [
        "file gone",
        "file short",
        "file of the same size",
        "file empty",
        "sidecar short",
        "sidecar empty",
        "sidecar of another kind",
        "sidecar without digest",
        "sidecar not UTF-8",
    ],
)
def test_damaged_work_is_done_again(kind: str) -> None:
    shard_work.run(2)
    expected = tree()
    damaged(kind, scratch() / "a/000.txt")
    shutil.rmtree(OUTPUT)
    shard_work.run(2)
    assert tree() == expected


def test_other_inputs_config_or_code_start_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    folders = set()
    for amount, config, code in ((2, 0, "x"), (3, 0, "x"), (2, 1, "x"), (2, 0, "y")):
        monkeypatch.setattr(shards, "sha256_of_tree", lambda _, code=code: code)
        run_shards("count", shard_work.count, tasks_of(amount), config={"times": config}, output=OUTPUT)
        folders.add(scratch().name)  # the earlier ones are gone
    assert len(folders) == 4


def test_stale_work_of_other_stages_is_left_alone() -> None:
    other = SHARD_WORK / "count-words-0123456789abcdef"
    other.mkdir(parents=True)
    stale = SHARD_WORK / "count-0123456789abcdef"
    stale.mkdir()
    shard_work.run(1)
    assert other.exists()
    assert not stale.exists()


def fill_disk_at(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """The `call`-th write finds the disk full; the system's error does not name the file."""
    calls = 0
    write_all = shards._write_all

    def full(file: Any, view: memoryview) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            write_all(file, view[: len(view) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        write_all(file, view)

    monkeypatch.setattr(shards, "_write_all", full)


@pytest.mark.parametrize(("call", "name"), [(3, "000.bin"), (8, "000.txt"), (11, "000.bin.json"), (25, MANIFEST)])
def test_full_disk_names_the_file_and_leaves_nothing_trusted(monkeypatch: pytest.MonkeyPatch, call: int, name: str) -> None:
    with monkeypatch.context() as patch:
        fill_disk_at(patch, call)
        with pytest.raises(OSError, match="No space left") as caught:
            shard_work.run(2)
    assert Path(caught.value.filename).name.startswith(name)
    assert not list(Path.cwd().rglob("*.part")), "a full disk gets its space back"
    assert not (OUTPUT / MANIFEST).exists()
    shard_work.run(2)
    expected = tree()
    shutil.rmtree(OUTPUT)
    shutil.rmtree(SHARD_WORK)
    shard_work.run(2)
    assert tree() == expected


def test_the_kernels_full_disk_gets_a_name() -> None:
    with Path("/dev/full").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left") as caught:
        HashingWriter(file).write(b"x")
    assert caught.value.filename == "/dev/full"


def test_writer_finishes_what_the_system_takes_in_parts() -> None:
    class Slow(io.BytesIO):
        def write(self, data: Any) -> int:
            return super().write(bytes(data)[:3])

    file = Slow()
    writer = HashingWriter(file)
    assert writer.write(b"0123456789") == 10
    assert file.getvalue() == b"0123456789"
    assert (writer.num_bytes, writer.sha256()[:8]) == (10, "84d89877")


@pytest.mark.parametrize("number", shards.CANNOT_LINK)
def test_another_disk_gets_copies(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    shard_work.run(2)
    expected = tree()

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    shard_work.run(2)
    assert tree() == expected
    assert (OUTPUT / "a/000.bin").stat().st_nlink == 1


def test_outputs_that_dvc_protected_or_linked_are_replaced() -> None:
    shard_work.run(2)
    expected = tree()
    for path in OUTPUT.rglob("*.*"):
        path.chmod(0o444)
    shard_work.run(2)
    assert tree() == expected
    OUTPUT.rename("elsewhere")
    OUTPUT.symlink_to("elsewhere")
    shard_work.run(2)
    assert not OUTPUT.is_symlink()
    assert tree() == tree(Path("elsewhere")) == expected
    shutil.rmtree(OUTPUT)
    OUTPUT.write_text("a file in the way")
    shard_work.run(2)
    assert tree() == expected


def test_two_runs_of_a_stage_do_not_meet() -> None:
    SHARD_WORK.mkdir()
    with (SHARD_WORK / "count.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ProsemillError, match=r"another count is at work \(.*\): wait for it or end it"):
            shard_work.run(1)
    shard_work.run(1)


def test_a_worker_that_the_system_ends_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROSEMILL_WORKERS", "2")
    with pytest.raises(ProsemillError, match=r"a worker of count.*memory.*PROSEMILL_WORKERS=1") as caught:
        run_shards("count", shard_work.be_killed, tasks_of(3), config={}, output=OUTPUT)
    assert "\n" not in str(caught.value)
    assert not OUTPUT.exists()


def test_one_bad_shard_ends_the_others_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROSEMILL_WORKERS", "2")
    before = psutil.Process().children(recursive=True)  # servers of other tests
    with pytest.raises(ProsemillError, match="the first shard is bad"):
        run_shards("count", shard_work.refuse_first, tasks_of(3), config={}, output=OUTPUT)
    assert not LOG.exists(), "nobody waited for another"
    assert not list(Path.cwd().rglob("*.part"))
    left = [child for child in psutil.Process().children(recursive=True) if child not in before]
    assert all("resource_tracker" in " ".join(child.cmdline()) for child in left)


@pytest.mark.parametrize("moment", ["as the workers start", "as they work"])
def test_ctrl_c_is_one_line_and_ends_the_workers(moment: str) -> None:
    process = start(2, seconds=60, workers=2)
    if moment == "as they work":
        until(lambda: len(list(Path.cwd().rglob("*.part"))) == 4, "four are at work")
    else:
        until(lambda: len(psutil.Process(process.pid).children()) == 3, "the workers are there")  # the third is multiprocessing's own
        time.sleep(0.15)  # in the middle of their imports
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: parent and workers
    _, said = process.communicate(timeout=LIMIT)
    assert process.returncode == 1
    assert said == "error: interrupted; run the same command again to go on\n"
    assert not psutil.wait_procs(family, timeout=LIMIT)[1]


def test_termination_ends_the_workers() -> None:
    process = start(2, seconds=60, workers=2)
    until(lambda: len(list(Path.cwd().rglob("*.part"))) == 4, "four are at work")
    family = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    process.communicate(timeout=LIMIT)
    assert not psutil.wait_procs(family, timeout=LIMIT)[1]


@pytest.mark.parametrize("given", ["0", "-1", "two", "", "1.5"])
def test_number_of_workers_is_checked(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("PROSEMILL_WORKERS", given)
    with pytest.raises(ProsemillError, match=f"PROSEMILL_WORKERS is '{given}'"):
        num_workers()


def test_number_of_workers_defaults_to_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROSEMILL_WORKERS")
    assert num_workers() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(("content", "said"), [(None, "is missing"), ("{", "is broken"), ("\xff", "is broken")])
def test_bad_manifest_is_one_line(content: str | None, said: str) -> None:
    if content is not None:
        Path(MANIFEST).write_bytes(content.encode("latin-1"))
    with pytest.raises(ProsemillError, match=f"{MANIFEST} {said}.*dvc repro"):
        read_manifest(Path())


def test_write_durably_replaces_the_whole_file() -> None:
    path = Path("folder/metrics.json")
    write_durably(path, "long content")
    write_durably(path, "é")
    assert path.read_bytes() == b"\xc3\xa9"
    assert tree(path.parent) == {"metrics.json": b"\xc3\xa9"}


def show_progress(pause: float = 0.0) -> None:
    with progress("tokenize", total=3, unit="shards") as bar:
        for _ in range(3):
            time.sleep(pause)
            bar.advance(note="1,234 tokens/s")


def test_progress_is_plain_lines_without_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    show_progress()
    assert capfd.readouterr().err == "tokenize: 3/3 shards in 0 s, 1,234 tokens/s\n"


def test_progress_shows_life_while_a_shard_takes_long(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "TICK", 0.01)
    monkeypatch.setattr(console, "PLAIN_INTERVAL", 0.05)
    show_progress(pause=0.2)
    lines = capfd.readouterr().err.splitlines()
    assert lines[0].startswith("tokenize: 0/3 shards in ")
    assert len(lines) > 4
    assert lines[-1].startswith("tokenize: 3/3 shards in ")
    assert lines[-1].endswith(" s, 1,234 tokens/s")


@pytest.mark.parametrize("columns", [0, 60, 200])  # a terminal that nobody told its width says 0
def test_progress_is_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    with os.fdopen(theirs, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        show_progress()
        terminal.flush()
        shown = ""
        while not shown.endswith("\n"):
            shown += os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert "\r" in shown
    assert "100%|" in shown
    assert "3/3 shards" in shown
    assert "1,234 tokens/s" in shown


def test_speed_counts_only_this_runs_work(capfd: pytest.CaptureFixture[str]) -> None:
    shard_work.run(2)
    assert " tokens/s\n" in capfd.readouterr().err
    shard_work.run(2)
    assert "tokens/s" not in capfd.readouterr().err
