"""Campaigns of `make soak`: every repeating test is one, and what came of each is recorded."""

import sys
from pathlib import Path

import pytest

from benchmarks import soak
from benchmarks.soak import Campaign, campaigns, run_campaign


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty record."""
    monkeypatch.setattr(soak, "RECORD", tmp_path / "RELIABILITY.md")
    return tmp_path / "RELIABILITY.md"


def python(code: str, minutes: float = 10) -> Campaign:
    return Campaign((sys.executable, "-c", code), minutes)


def test_every_campaign_takes_the_seed_and_has_a_limit() -> None:
    found = campaigns()
    assert {"kills", "promotions"} <= set(found)
    assert all("{seed}" in " ".join(each.command) and each.minutes > 0 for each in found.values())


@pytest.mark.parametrize(
    ("campaign", "holds", "said"),
    [
        (python("print('3 of 3 runs differ, seed', {seed})"), True, ("held in", "3 of 3 runs differ, seed 5")),
        (python("print('2 failed, 3 passed'); raise SystemExit(1)"), False, ("failed with exit status 1", "2 failed, 3 passed")),
        (python("import time; time.sleep(999)", minutes=0.001), False, ("not at its end after 0.001 minutes", "nothing was counted")),
    ],
    ids=["held", "failed", "too long"],
)
def test_what_came_of_a_campaign_is_recorded(rows: Path, campaign: Campaign, holds: bool, said: tuple[str, ...]) -> None:
    assert run_campaign("small", campaign, seed=5) == holds
    (row,) = rows.read_text(encoding="utf-8").splitlines()
    assert row.startswith("| 2")
    assert all(part in row for part in ("| small |", *said))
