"""Whatever cuts a promotion, the registry has a valid champion, and the next call puts the rest in order."""

import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pytest

from prosemill.errors import ProsemillError
from prosemill.params import Gate
from prosemill.registry import promotion
from prosemill.registry.gate import Verdict, judge
from prosemill.registry.promotion import _change, current_champion, promote, roll_back, settle
from prosemill.registry.registering import register
from prosemill.registry.store import CHALLENGER, CHAMPION, MODEL_NAME, PREVIOUS_CHAMPION, Registry, Served, State
from tests.registry.conftest import on_every_server
from tests.registry.workspace import Workspace
from tests.waiting import LIMIT

ROOT = Path(__file__).parents[2]
GATE = Gate()
WRITES = ("set_alias", "set_state", "set_tags", "describe")
"""Methods of the registry that change it."""


class Cut(BaseException):
    """Stands for a kill: nothing catches it."""


@contextmanager
def cut_at(number: int, *, after: bool) -> Iterator[list[int]]:
    """Cut at the registry's write of this number (1 for the first), before or after it; yields how many writes there were."""
    count = [0]

    def counted(original: Any) -> Any:
        def write(*arguments: Any, **options: Any) -> None:
            count[0] += 1
            if count[0] == number and not after:
                raise Cut
            original(*arguments, **options)
            if count[0] == number:
                raise Cut

        return write

    with pytest.MonkeyPatch.context() as patch:
        for name in WRITES:
            patch.setattr(Registry, name, counted(getattr(Registry, name)))
        yield count


def aliases(registry: Registry) -> tuple[int | None, int | None, int | None]:
    found = registry.aliases()
    return found.get(CHAMPION), found.get(PREVIOUS_CHAMPION), found.get(CHALLENGER)


@on_every_server
def test_the_challenger_becomes_champion_and_the_champion_its_predecessor(registry: Registry) -> None:
    registry.set_alias(CHALLENGER, 1)
    assert promote(registry, GATE).champion is None
    assert aliases(registry) == (1, None, None)
    registry.set_alias(CHALLENGER, 2)
    assert promote(registry, GATE).champion == 1
    assert aliases(registry) == (2, 1, None)
    assert promote(registry, GATE, 3).passed
    assert aliases(registry) == (3, 2, None)


@on_every_server
def test_a_rollback_is_one_step_back_and_no_more(registry: Registry) -> None:
    promote(registry, GATE, 1)
    promote(registry, GATE, 2)
    assert roll_back(registry) == (1, 2)
    assert aliases(registry) == (1, None, None)
    assert "rolled_back" in registry.version(2).tags
    with pytest.raises(ProsemillError, match="there is no previous_champion"):
        roll_back(registry)
    assert aliases(registry) == (1, None, None)


@on_every_server
def test_a_version_that_fails_changes_nothing_but_its_verdict(registry: Registry) -> None:
    promote(registry, GATE, 2)
    registry.set_alias(CHALLENGER, 1)
    verdict = promote(registry, GATE)
    assert not verdict.passed
    assert aliases(registry) == (2, None, 1)
    assert registry.version(1).tags["gate"] == "failed"
    assert registry.version(1).tags["verdict"] == verdict.as_json()


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("act", ["promote", "roll back"])
def test_a_change_cut_at_any_write_leaves_a_valid_champion_and_is_mended(registry: Registry, act: str, after: bool) -> None:
    def change() -> None:
        if act == "promote":
            promote(registry, GATE)
        else:
            roll_back(registry)

    target = (3, 2, None) if act == "promote" else (1, None, 3)
    for number in itertools.count(1):
        _start(registry, champion=2, previous=1, challenger=3)
        try:
            with cut_at(number, after=after):
                change()
            break
        except Cut:
            pass
        assert aliases(registry)[0] in (2, target[0]), number
        assert current_champion(registry) is not None
        settle(registry)
        assert aliases(registry) in ((2, 1, 3), target), number
        if aliases(registry) != target:
            change()
        assert aliases(registry) == target
        assert registry.state() == State(Served(target[0], target[1]))
    assert number > 5, "each alias, and what is written down before and after"


def _start(registry: Registry, *, champion: int | None, previous: int | None, challenger: int | None) -> None:
    for alias, number in ((CHAMPION, champion), (PREVIOUS_CHAMPION, previous), (CHALLENGER, challenger)):
        registry.set_alias(alias, number)
    registry.set_state(State(Served(champion, previous)))


def test_the_first_promotion_cut_at_any_write_is_mended(registry: Registry) -> None:
    for number in itertools.count(1):
        _start(registry, champion=None, previous=None, challenger=1)
        try:
            with cut_at(number, after=True):
                promote(registry, GATE)
            break
        except Cut:
            pass
        settle(registry)
        if aliases(registry) != (1, None, None):
            assert aliases(registry) == (None, None, 1)
            promote(registry, GATE)
        assert aliases(registry) == (1, None, None), number


def test_a_champion_set_by_hand_counts_and_the_last_one_is_its_predecessor(registry: Registry) -> None:
    promote(registry, GATE, 1)
    registry.set_alias(CHAMPION, 2)
    promote(registry, GATE, 3)
    assert aliases(registry) == (3, 2, None)
    registry.set_alias(CHAMPION, 1)
    assert roll_back(registry) == (3, 1)


@on_every_server
def test_a_deleted_champion_is_said_and_the_way_back_is_open(registry: Registry) -> None:
    extra = copy_of_version(registry, 2)
    promote(registry, GATE, 1)
    promote(registry, GATE, extra)
    delete(registry, extra)
    with pytest.raises(ProsemillError, match=f"the champion, version {extra}, lost its alias or was deleted: run `prosemill rollback`"):
        promote(registry, GATE, 3)
    assert aliases(registry) == (None, 1, None)
    for number in itertools.count(1):
        try:
            with cut_at(number, after=True):
                roll_back(registry)
            break
        except Cut:
            assert aliases(registry)[0] in (None, 1)
            settle(registry)
            if aliases(registry)[0] == 1:
                break
            assert aliases(registry)[1] == 1, "what to go back to is not lost"
    assert aliases(registry) == (1, None, None)


@on_every_server
def test_an_alias_to_a_version_that_is_gone_is_refused(registry: Registry) -> None:
    extra = copy_of_version(registry, 2)
    promote(registry, GATE, 1)
    registry.set_alias(CHALLENGER, extra)
    with pytest.MonkeyPatch.context() as patch:  # MLflow itself drops a deleted version's aliases; another registry may not
        patch.setattr(Registry, "find", lambda self, number: None if number == extra else Registry.version(self, number))
        with pytest.raises(ProsemillError, match=f"the alias challenger points to version {extra}, which was deleted"):
            promote(registry, GATE)
    assert aliases(registry) == (1, None, extra)
    delete(registry, extra)
    with pytest.raises(ProsemillError, match="there is no challenger"):
        promote(registry, GATE)
    with pytest.raises(ProsemillError, match=f"version {extra} of prosemill is not in the registry"):
        promote(registry, GATE, extra)
    assert aliases(registry) == (1, None, None)


def test_who_waits_comes_after_the_change_that_is_at_work(registry: Registry) -> None:
    came = threading.Event()

    def come() -> None:
        with registry.locked(wait=True):
            came.set()

    with registry.locked():
        waiting = threading.Thread(target=come)
        waiting.start()
        assert not came.wait(0.5)
    waiting.join(timeout=LIMIT)
    assert came.is_set()


def test_two_promotions_at_once_are_one(registry: Registry) -> None:
    registry.set_alias(CHALLENGER, 1)
    code = "import sys; from prosemill.registry.store import Registry\nwith Registry.open().locked(): print(flush=True); sys.stdin.read()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    first = subprocess.Popen([sys.executable, "-c", code], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert first.stdin is not None
    assert first.stdout is not None
    first.stdout.readline()
    with pytest.raises(ProsemillError, match=rf"another change of the registry is at work .*\(process {first.pid} since .*\): wait"):
        promote(registry, GATE)
    assert aliases(registry) == (None, None, 1)
    first.kill()
    first.communicate()
    promote(registry, GATE)


def test_a_promotion_while_another_is_at_its_gate_is_refused(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.set_alias(CHALLENGER, 1)
    refused = []

    def judge_slowly(*arguments: Any) -> Verdict:
        with pytest.raises(ProsemillError, match="another change of the registry is at work") as found:
            promote(Registry.open(), GATE)
        refused.append(found)
        return judge(*arguments)

    monkeypatch.setattr(promotion, "judge", judge_slowly)
    assert promote(registry, GATE).passed
    assert len(refused) == 1
    assert aliases(registry) == (1, None, None)


def test_a_champion_that_changes_while_the_gate_works_is_not_overwritten(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    promote(registry, GATE, 1)
    original = Registry.describe

    def describe(self: Registry, number: int, text: str, *, instead_of: str) -> None:
        original(self, number, text, instead_of=instead_of)
        self.set_alias(CHAMPION, 2)

    monkeypatch.setattr(Registry, "describe", describe)
    with pytest.raises(ProsemillError, match="somebody else changes the registry at the same time"):
        promote(registry, GATE, 3)
    assert aliases(registry) == (2, None, None)


def test_a_change_from_another_machine_makes_this_one_give_way(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock is of one machine; here a whole promotion comes from another between the writes of this one."""
    for number in (1, 2):
        promote(registry, GATE, number)
    original = Registry.set_state

    def set_state(self: Registry, state: State) -> None:
        original(self, state)
        monkeypatch.setattr(Registry, "set_state", original)
        settle(self)
        _change(self, self.served(), Served(3, 2))

    monkeypatch.setattr(Registry, "set_state", set_state)
    with pytest.raises(ProsemillError, match="somebody else changes the registry at the same time"):
        roll_back(registry)
    assert aliases(registry) == (3, 2, None)
    assert registry.state() == State(Served(3, 2))


def test_a_version_that_was_rolled_back_and_serves_again_is_not_called_so(registry: Registry) -> None:
    for number in (1, 2):
        promote(registry, GATE, number)
    roll_back(registry)
    promote(registry, GATE, 2)
    assert registry.version(2).tag("rolled_back") == ""


def test_aliases_set_by_hand_are_taken_as_they_are(registry: Registry) -> None:
    for number in (1, 2):
        promote(registry, GATE, number)
    registry.set_alias(CHAMPION, 3)
    registry.set_alias(PREVIOUS_CHAMPION, None)
    settle(registry)
    assert aliases(registry) == (3, None, None)
    registry.set_alias(PREVIOUS_CHAMPION, 3)
    with pytest.raises(ProsemillError, match="version 3 is both champion and previous champion"):
        roll_back(registry)


def test_a_predecessor_that_is_there_is_not_lost_with_a_deleted_champion(registry: Registry) -> None:
    extra = copy_of_version(registry, 2)
    promote(registry, GATE, 1)
    promote(registry, GATE, extra)
    delete(registry, extra)
    registry.set_alias(CHAMPION, 3)
    settle(registry)
    assert aliases(registry) == (3, 1, None)


@pytest.mark.parametrize("text", ["", "[]", '"x"', "null", '{"coming": 5}', '{"served": {"champion": 1}}', "{"])
def test_a_state_that_nobody_of_ours_wrote_counts_as_none(text: str) -> None:
    assert State.parse(text) == State()


def test_a_state_is_read_as_it_was_written() -> None:
    state = State(Served(2, 1), Served(1, None), rolled_back=2, by="word")
    assert State.parse(state.as_json()) == state


def test_the_champion_is_not_promoted_again(registry: Registry) -> None:
    promote(registry, GATE, 1)
    with pytest.raises(ProsemillError, match="version 1 is the champion already"):
        promote(registry, GATE, 1)


def copy_of_version(registry: Registry, number: int) -> int:
    """Another version of the same package."""
    version = registry.version(number)
    return registry.create(version.model_id, version.run_id, version.tags)


def delete(registry: Registry, number: int) -> None:
    """Delete a version, as a person does in MLflow's page."""
    mlflow.MlflowClient().delete_model_version(MODEL_NAME, str(number))


def nothing_listens(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return "http://127.0.0.1:9"


@pytest.mark.parametrize(
    "work", [lambda: promote(Registry.open(), GATE), lambda: roll_back(Registry.open()), register], ids=["promote", "roll back", "register"]
)
def test_a_registry_that_is_down_is_one_line(fresh: Workspace, work: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    fresh.train("a" * 16)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", nothing_listens(monkeypatch))
    with pytest.raises(
        ProsemillError, match=r"the MLflow server at http://127.0.0.1:9 does not answer \(Connection refused\): start it, or unset MLFLOW"
    ):
        work()


@pytest.mark.parametrize("address", ["foo://bar", "postgresql+pymysql://nobody@127.0.0.1:9/none", "sqlite:///params.yaml"])
def test_an_address_that_is_none_is_one_line(fresh: Workspace, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh.train("a" * 16)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(ProsemillError) as found:
        Registry.open().versions()
    assert "\n" not in str(found.value)


def test_a_lock_that_cannot_be_made_is_one_line(fresh: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", nothing_listens(monkeypatch))
    monkeypatch.setenv("PROSEMILL_CACHE", str(fresh.folder / "params.yaml"))
    (fresh.folder / "params.yaml").touch()
    with pytest.raises(ProsemillError, match=r"the lock .* cannot be made \(Not a directory\): make its folder writable"):
        promote(Registry.open(), GATE)
