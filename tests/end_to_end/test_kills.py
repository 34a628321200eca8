"""The real `dvc repro`, killed at six moments spread over all stages, leaves what an uncut run leaves."""

from pathlib import Path

from benchmarks.kills import kill_often

KILLS = 6
ORPHAN_SECONDS = 10


def test_a_killed_pipeline_that_is_run_again_leaves_what_an_uncut_one_leaves(tmp_path: Path) -> None:
    found = list(kill_often(tmp_path, KILLS, seed=1))
    assert [kill.differing for kill in found] == [[]] * KILLS
    assert {kill.alone for kill in found} == {True, False}
    assert len({kill.stage for kill in found} - {"between stages"}) >= 2, "the kills must fall into stages"
    assert max(kill.orphan_seconds for kill in found) < ORPHAN_SECONDS
