"""Promotions, rollbacks, hands on the aliases, deletions and kills in any order: the registry agrees with a model of it after each."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from prosemill.errors import ProsemillError
from prosemill.registry.promotion import _change, roll_back, settle
from prosemill.registry.store import CHALLENGER, CHAMPION, PREVIOUS_CHAMPION, Registry, Served, State, Version
from tests import campaigns
from tests.campaigns import repeats


class Cut(BaseException):
    """Stands for a kill."""


class MemoryRegistry(Registry):
    """What MLflow keeps of a registry, in memory: writes are counted, and one of them may be cut."""

    def __init__(self) -> None:
        self.numbers: set[int] = {1, 2, 3}
        self.alias_of: dict[str, int] = {}
        self.stored = State()
        self.writes_left = -1

    def _write(self) -> None:
        if self.writes_left == 0:
            raise Cut
        self.writes_left -= 1

    def locked(self, *, wait: bool = False) -> Any:
        return pytest.MonkeyPatch.context()  # a context that does nothing: one thread is at work

    def whole_package(self, version: Version) -> Any:
        return pytest.MonkeyPatch.context()

    def aliases(self) -> dict[str, int]:
        return dict(self.alias_of)

    def versions(self) -> list[Version]:
        return [Version(number, "", "", {}, ()) for number in sorted(self.numbers, reverse=True)]

    def find(self, number: int) -> Version | None:
        return next((version for version in self.versions() if version.number == number), None)

    def set_tags(self, number: int, tags: Mapping[str, str]) -> None:
        self._write()

    def set_alias(self, alias: str, number: int | None) -> None:
        self._write()
        if number is None:
            self.alias_of.pop(alias, None)
        else:
            assert number in self.numbers
            self.alias_of[alias] = number

    def state(self) -> State:
        return self.stored

    def set_state(self, state: State) -> None:
        self._write()
        self.stored = state


class Promotions(RuleBasedStateMachine):
    """What people and kills do to a registry."""

    @initialize()
    def begin(self) -> None:
        self.registry = MemoryRegistry()

    def _do(self, change: Any, writes: int | None) -> bool:
        """Do a change, cut at a write or whole; whether it came to its end."""
        self.registry.writes_left = -1 if writes is None else writes
        try:
            change()
        except Cut:
            return False
        finally:
            self.registry.writes_left = -1
        return True

    def _served(self) -> tuple[int | None, int | None]:
        return self.registry.alias_of.get(CHAMPION), self.registry.alias_of.get(PREVIOUS_CHAMPION)

    def _is_mended(self, before: tuple[int | None, int | None], after: tuple[int | None, int | None]) -> None:
        """After a cut either champion is served, and the next call leaves all as before or all as after."""
        assert self._served()[0] in (before[0], after[0])
        settle(self.registry)
        assert self._served() in (before, after)

    @rule(data=st.data(), writes=st.none() | st.integers(0, 8))
    def promote(self, data: st.DataObject, writes: int | None) -> None:
        settle(self.registry)
        before, previous = self._served()
        others = sorted(self.registry.numbers - {before})
        if not others:
            return
        number = data.draw(st.sampled_from(others))
        if self._do(lambda: _change(self.registry, self.registry.served(), Served(number, before)), writes):
            assert self._served() == (number, before)
            assert self.registry.alias_of.get(CHALLENGER) != number
        else:
            self._is_mended((before, previous), (number, before))

    @rule(writes=st.none() | st.integers(0, 8))
    def roll_back(self, writes: int | None) -> None:
        settle(self.registry)
        before, previous = self._served()
        if previous in (None, before):
            with pytest.raises(ProsemillError):
                roll_back(self.registry)
        elif self._do(lambda: roll_back(self.registry), writes):
            assert self._served() == (previous, None)
        else:
            self._is_mended((before, previous), (previous, None))

    @rule(writes=st.integers(0, 8))
    def settle_and_be_cut(self, writes: int) -> None:
        before, previous = self._served()
        self._do(lambda: settle(self.registry), writes)
        assert self._served()[0] == before, "settling never changes what is served"
        assert previous is None or self._served()[1] is not None, "nor does it lose the way back"

    @rule(data=st.data(), alias=st.sampled_from([CHALLENGER, CHAMPION, PREVIOUS_CHAMPION]))
    @precondition(lambda self: self.registry.numbers)
    def set_by_hand(self, data: st.DataObject, alias: str) -> None:
        self.registry.alias_of[alias] = data.draw(st.sampled_from(sorted(self.registry.numbers)))

    @rule()
    @precondition(lambda self: len(self.registry.numbers) < 6)
    def register(self) -> None:
        self.registry.numbers.add(max(self.registry.numbers, default=0) + 1)

    @rule(data=st.data())
    @precondition(lambda self: len(self.registry.numbers) > 1)
    def delete(self, data: st.DataObject) -> None:
        """As MLflow does it: the aliases of a deleted version go with it."""
        number = data.draw(st.sampled_from(sorted(self.registry.numbers)))
        self.registry.numbers.remove(number)
        self.registry.alias_of = {alias: target for alias, target in self.registry.alias_of.items() if target != number}

    @invariant()
    def every_alias_points_to_a_version(self) -> None:
        assert set(self.registry.alias_of.values()) <= self.registry.numbers


def test_any_order_of_changes_and_kills_agrees_with_the_model() -> None:
    drawn = settings(max_examples=repeats(few=50, many=2000), stateful_step_count=50, deadline=None, database=None)
    run_state_machine_as_test(seed(campaigns.seed())(Promotions), settings=drawn)


def test_the_way_back_from_a_champion_that_was_deleted_before_its_promotion_was_settled() -> None:
    registry = MemoryRegistry()
    _change(registry, Served(), Served(1))
    _change(registry, Served(1), Served(2, 1))
    registry.writes_left = 3  # the state, the predecessor, the champion
    with pytest.raises(Cut):
        _change(registry, Served(2, 1), Served(3, 2))
    registry.writes_left = -1
    assert registry.alias_of[CHAMPION] == 3
    registry.numbers.remove(3)
    del registry.alias_of[CHAMPION]
    assert roll_back(registry) == (2, None)
