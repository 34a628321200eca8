"""The real `dvc repro`, killed at six moments spread over its time, leaves what an uncut run leaves."""

from pathlib import Path

import pytest

from benchmarks.kills import kill_often

KILLS = 6


def test_a_killed_pipeline_that_is_run_again_leaves_what_an_uncut_one_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # With several threads, which a user has and the other tests have not: their sums must come out the same, too.
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    found = list(kill_often(tmp_path, KILLS, seed=1))
    assert [kill.differing for kill in found] == [[]] * KILLS
    assert {kill.alone for kill in found} == {True, False}
    assert "stages.train" in {kill.stage for kill in found}
