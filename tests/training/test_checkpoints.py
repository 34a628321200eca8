"""A checkpoint is whole or it is not resumed, whatever moment its process was killed at."""

import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest

from prosemill.training.checkpoints import COMPLETE, Checkpoints
from tests.corpus.killing import arm

CALLS = ((os, "fsync"), (os, "open"), (Path, "rename"), (Path, "replace"), (Path, "unlink"), (Path, "mkdir"), (shutil, "rmtree"))
"""What changes a disk, and when."""


def write(checkpoints: Checkpoints, step: int) -> None:
    """A checkpoint with a file of its step and one in a folder, as an adapter has."""
    with checkpoints.writing(step) as folder:
        (folder / "weights").write_text(f"weights of step {step}", encoding="utf-8")
        (folder / "adapter").mkdir()
        (folder / "adapter/state").write_text(f"state of step {step}", encoding="utf-8")


def killed_before_call(number: int, folder: Path) -> bool:
    """Write a second checkpoint and drop the first, in a process that is killed before that call; whether it came so far."""

    def work() -> None:
        arm(number, CALLS)
        checkpoints = Checkpoints(folder)
        write(checkpoints, 2)
        checkpoints.keep({2})

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def test_killed_before_any_call_that_changes_the_disk_a_whole_checkpoint_is_there(tmp_path: Path) -> None:
    found = []
    for number in range(1, 1000):
        folder = tmp_path / str(number)
        write(Checkpoints(folder), 1)
        killed = killed_before_call(number, folder)
        step = Checkpoints(folder).newest()
        assert step is not None
        newest = Checkpoints(folder).path(step)
        assert (newest / "weights").read_text(encoding="utf-8") == f"weights of step {step}"
        assert (newest / "adapter/state").read_text(encoding="utf-8") == f"state of step {step}"
        assert not list(folder.glob("*.part"))
        found.append(step)
        if not killed:
            break
    assert len(found) > 10, "the calls must be seen"
    assert found == sorted(found), "from some call on, the new one is there"
    assert set(found) == {1, 2}


@pytest.mark.parametrize("name", ["weights", "adapter/state", COMPLETE])
@pytest.mark.parametrize("harm", ["missing", "cut", "changed"])
def test_a_checkpoint_that_is_not_whole_gives_way_to_an_older_one(
    tmp_path: Path, name: str, harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = Checkpoints(tmp_path)
    write(checkpoints, 10)
    write(checkpoints, 9)
    path = checkpoints.path(10) / name
    content = path.read_bytes()
    path.unlink()
    if harm != "missing":
        path.write_bytes(content[:-3] if harm == "cut" else bytes([content[0] ^ 1]) + content[1:])
    assert checkpoints.newest() == 9
    assert "the checkpoint of step 10 is of no use and is deleted: " in capsys.readouterr().err
    assert checkpoints.steps() == [9]


def test_the_newest_is_the_latest_step_and_none_where_there_is_nothing(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "none")
    assert checkpoints.newest() is None
    for step in (9, 10, 100):
        write(checkpoints, step)
    assert checkpoints.newest() == 100
    checkpoints.keep({9, 10})
    assert checkpoints.newest() == 10
    checkpoints.clear()
    assert not (tmp_path / "none").exists()


def test_an_error_while_writing_leaves_the_older_one_and_no_scraps(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    write(checkpoints, 1)

    def fill() -> None:
        with checkpoints.writing(2) as folder:
            (folder / "weights").write_text("half", encoding="utf-8")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        fill()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def test_the_same_step_may_be_written_again(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    write(checkpoints, 1)
    write(checkpoints, 1)
    assert checkpoints.newest() == 1
    assert set(json.loads((checkpoints.path(1) / COMPLETE).read_text(encoding="utf-8"))) == {"weights", "adapter/state"}
