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


def test_a_killed_training_that_is_run_again_leaves_what_an_uncut_one_leaves(finished: Path, tmp_path: Path) -> None:
    uncut, whole_group, dvc_alone = (copy_workspace(finished, tmp_path / name) for name in ("uncut", "whole-group", "dvc-alone"))
    for clone in (uncut, whole_group, dvc_alone):
        clone.compose(*EXPERIMENT)
    run_whole(uncut.folder, uncut.environment, "train")
    expected = result_of(uncut.folder)
    assert set(expected["tracked runs"]) == {"FINISHED"}

    for clone, alone in ((whole_group, False), (dvc_alone, True)):
        kill = kill_once(clone.folder, clone.environment, wait_for_checkpoint(clone.folder), "train", alone=alone, expected=expected)
        assert (kill.stage, kill.differing) == ("stages.train", [])


def wait_for_checkpoint(folder: Path) -> Callable[["subprocess.Popen[bytes]"], None]:
    """Wait until a training has saved its first whole checkpoint, and still trains."""

    def wait(dvc: "subprocess.Popen[bytes]") -> None:
        until(lambda: any((folder / ".checkpoints").glob("*/checkpoint-*[0-9]")) or dvc.poll() is not None, "a checkpoint is saved")
        assert dvc.poll() is None, "it trains"

    return wait
