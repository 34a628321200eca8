"""Which version is served: promotion through the gate, and the way back.

    promote(registry, gate)         # the challenger
    promote(registry, gate, 4)
    roll_back(registry)

A promotion is several writes, and MLflow has no transaction over them. So what is about to happen is written down first, then
`previous_champion` moves, then `champion`, and then it is written down that all is settled: killed between any two, the registry has a
valid champion, and the next call undoes or completes the rest. An alias that somebody set in MLflow's own page is taken as it is.

On one machine a lock keeps changes apart. From several, each looks right before it moves an alias whether what it has written down still
stands, and gives way if not: what is left is the moment between that look and the move.
"""

import uuid
from dataclasses import replace
from datetime import UTC, datetime

from prosemill.console import say
from prosemill.errors import ProsemillError
from prosemill.params import Gate
from prosemill.registry.gate import TITLE, Verdict, judge
from prosemill.registry.store import CHALLENGER, CHAMPION, PREVIOUS_CHAMPION, Registry, Served, State, Version

AT_THE_SAME_TIME = (
    "somebody else changes the registry at the same time: look at `prosemill versions`, and try again if that is not what you want"
)


def promote(registry: Registry, section: Gate, number: int | None = None, *, wait: bool = False) -> Verdict:
    """Make a version the champion if it passes the gate; the verdict is kept with the version either way.

    Args:
        registry: Where it is.
        section: The gate's section of params.yaml.
        number: The version; None for the challenger.
        wait: Whether to wait for another change on this machine.

    Returns:
        The verdict; if it did not pass, the champion is what it was.

    Raises:
        IncomparableError: as `judge` does.
        ProsemillError: there is no such version, it is the champion already, `judge` cannot judge it, or somebody else changes
            the registry.
    """
    with registry.locked(wait=wait):
        settle(registry)
        before = registry.served()
        verdict = _examine(registry, section, number)
        if verdict.passed:
            _change(registry, before, Served(verdict.version, before.champion))
        return verdict


def examine(registry: Registry, section: Gate, number: int | None = None, *, wait: bool = False) -> Verdict:
    """What the gate says of a version, kept with it; no alias moves. Arguments and errors as in `promote`."""
    with registry.locked(wait=wait):
        settle(registry)
        return _examine(registry, section, number)


def _examine(registry: Registry, section: Gate, number: int | None) -> Verdict:
    version = registry.version(number) if number is not None else _named(registry, CHALLENGER)
    champion = current_champion(registry)
    if champion is not None and champion.number == version.number:
        raise ProsemillError(f"version {version.number} is the champion already: there is nothing to promote")
    verdict = judge(registry, version, champion, section)
    registry.set_tags(version.number, {"gate": "passed" if verdict.passed else "failed", "verdict": verdict.as_json()})
    registry.describe(version.number, verdict.as_markdown(), instead_of=TITLE)
    return verdict


def roll_back(registry: Registry) -> tuple[int, int | None]:
    """Make the previous champion the champion again; the versions that serve after and before.

    Raises:
        ProsemillError: there is no previous champion, its package is gone or was altered, or somebody else changes the registry.
    """
    with registry.locked():
        settle(registry)
        version = _named(registry, PREVIOUS_CHAMPION)
        before = registry.served()
        if before.champion == version.number:
            raise ProsemillError(f"version {version.number} is both champion and previous champion: there is nothing to go back to")
        with registry.whole_package(version):
            pass
        _change(registry, before, Served(version.number, None), rolled_back=before.champion)
        return version.number, before.champion


def current_champion(registry: Registry) -> Version | None:
    """The version that the alias `champion` names, whoever set it; None if there has never been one.

    Raises:
        ProsemillError: the champion was deleted.
    """
    number = registry.served().champion
    if number is not None:
        return _existing(registry, CHAMPION, number)
    last = registry.state().served.champion
    if last is None:
        return None
    raise ProsemillError(
        f"the champion, version {last}, lost its alias or was deleted: run `prosemill rollback`, or set the alias `champion` in the "
        "MLflow page (`prosemill ui`) to a version that is there"
    )


def settle(registry: Registry) -> None:
    """Undo or complete a change that was cut, and note a champion that was set by hand."""
    state, now = registry.state(), registry.served()
    last, coming = state.served, state.coming
    if coming and (now == coming or now.champion == coming.champion != last.champion):
        say(f"the change to version {now.champion} was cut before its end: it is completed")
        _settled(registry, coming, state.rolled_back)
    elif coming and now.champion in (last.champion, None):
        say("a change of the champion was cut before it took effect: what it had begun is undone")
        # Without a champion the change may have taken effect, and its champion been deleted since: then this is the way back.
        way_back = now.previous if now.champion is None else None
        _settled(registry, Served(last.champion, way_back or last.previous))
    elif now.champion not in (last.champion, None):
        say(f"version {now.champion} was made champion by hand")
        is_untouched = now.previous == last.previous and last.champion is not None and registry.find(last.champion) is not None
        _settled(registry, replace(now, previous=last.champion) if is_untouched else now)


def _change(registry: Registry, before: Served, after: Served, rolled_back: int | None = None) -> None:
    """Move the aliases from what they were when the change was decided."""
    known = registry.state().served.champion if before.champion is None else before.champion  # a deleted one too
    state = State(Served(known, before.previous), after, rolled_back, by=uuid.uuid4().hex)
    if registry.served() != before or registry.state().coming is not None:
        raise ProsemillError(AT_THE_SAME_TIME)
    registry.set_state(state)
    for alias, number in ((PREVIOUS_CHAMPION, after.previous), (CHAMPION, after.champion)):
        if registry.state() != state:
            raise ProsemillError(AT_THE_SAME_TIME)
        registry.set_alias(alias, number)
    if registry.served() != after:
        raise ProsemillError(AT_THE_SAME_TIME)
    _settled(registry, after, rolled_back)


def _settled(registry: Registry, served: Served, rolled_back: int | None = None) -> None:
    """What comes after the champion's alias: the rest follows, and all is written down as settled."""
    previous = served.previous if served.previous is not None and registry.find(served.previous) is not None else None
    aliases = registry.aliases()
    if aliases.get(PREVIOUS_CHAMPION) != previous:
        registry.set_alias(PREVIOUS_CHAMPION, previous)
    if served.champion is not None and aliases.get(CHALLENGER) == served.champion:
        registry.set_alias(CHALLENGER, None)
    if rolled_back is not None and registry.find(rolled_back) is not None:
        registry.set_tags(rolled_back, {"rolled_back": datetime.now(UTC).isoformat(timespec="seconds")})
    champion = registry.find(served.champion) if served.champion is not None else None
    if champion is not None and champion.tag("rolled_back"):
        registry.set_tags(champion.number, {"rolled_back": ""})
    registry.set_state(State(Served(served.champion, previous)))


def _named(registry: Registry, alias: str) -> Version:
    number = registry.aliases().get(alias)
    if number is None:
        remedy = {CHALLENGER: "run `prosemill register` or name a version", PREVIOUS_CHAMPION: "there is nothing to go back to"}
        raise ProsemillError(f"there is no {alias}: {remedy[alias]} (`prosemill versions` lists what there is)")
    return _existing(registry, alias, number)


def _existing(registry: Registry, alias: str, number: int) -> Version:
    version = registry.find(number)
    if version is None:
        raise ProsemillError(f"the alias {alias} points to version {number}, which was deleted: set it to another in the MLflow page")
    return version
