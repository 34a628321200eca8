"""A killed training leaves what an uncut one leaves when it is run again. `make soak` kills every stage at any moment."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.kills import EXPERIMENT, kill_once, result_of, run_whole
from tests.end_to_end.conftest import copy_workspace
from tests.waiting import until


@pytest.fixture(autouse=True)
def several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user has and the other tests have not: the sums of several threads must come out the same, too."""
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")


def test_a_training_whose_dvc_was_killed_leaves_what_an_uncut_one_leaves_when_it_is_run_again(finished: Path, tmp_path: Path) -> None:
    uncut, killed = (copy_workspace(finished, tmp_path / name) for name in ("uncut", "killed"))
    for clone in (uncut, killed):
        clone.compose(*EXPERIMENT)
    run_whole(uncut.folder, uncut.environment, "train")
    expected = result_of(uncut.folder)
    assert set(expected["tracked runs"]) == {"FINISHED"}

    kill = kill_once(killed.folder, killed.environment, wait_for_checkpoint(killed.folder), "train", alone=True, expected=expected)
    assert (kill.stage, kill.differing) == ("stages.train", [])


def wait_for_checkpoint(folder: Path) -> Callable[["subprocess.Popen[bytes]"], None]:
    """Wait until a training has saved its first whole checkpoint, and still trains."""

    def wait(dvc: "subprocess.Popen[bytes]") -> None:
        until(lambda: any((folder / ".checkpoints").glob("*/checkpoint-*[0-9]")) or dvc.poll() is not None, "a checkpoint is saved")
        assert dvc.poll() is None, "it trains"

    return wait
