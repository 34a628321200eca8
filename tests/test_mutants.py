"""The planted bugs of `benchmarks/mutants.py` are of today's code: each can be planted, and its tests are there."""

import pytest

from benchmarks.mutants import MUTANTS, ROOT, Mutant


def test_there_are_twenty_each_in_a_room_of_its_own() -> None:
    assert len({mutant.room for mutant in MUTANTS}) == len(MUTANTS) == 20


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.room)
def test_a_bug_can_be_planted(mutant: Mutant) -> None:
    assert (ROOT / "prosemill" / mutant.path).read_text(encoding="utf-8").count(mutant.right) == 1
    compile((ROOT / "prosemill" / mutant.path).read_text(encoding="utf-8").replace(mutant.right, mutant.wrong), mutant.path, "exec")
    assert all((ROOT / "tests" / name.partition("::")[0]).exists() for name in mutant.tests)
