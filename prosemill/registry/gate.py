"""The gate before production: rules with their numbers, and a verdict for each.

    verdict = judge(registry, challenger, champion, section)
    verdict.passed, verdict.rules

Bits per byte compare only on the same documents, read in the same windows and arithmetic: a champion that was evaluated otherwise is
evaluated again, from its registered weights, on the challenger's documents.
"""

import json
from dataclasses import asdict, dataclass, replace

from prosemill.console import say
from prosemill.digests import sha256_of_value
from prosemill.errors import ProsemillError
from prosemill.params import Evaluate, Gate, parse_section
from prosemill.registry.kept import Kept, read_kept
from prosemill.registry.lineage import PACKAGE, Link, links, model_folder
from prosemill.registry.packaging import LOGIT_TOLERANCE
from prosemill.registry.store import Registry, Version
from prosemill.workspace import CORPUS

HEADER = ("rule", "found", "needed", "verdict")


class IncomparableError(ProsemillError):
    """Two versions whose numbers measure different things: neither is the better one."""


@dataclass(frozen=True)
class Rule:
    """One rule of the gate."""

    name: str
    found: str
    needed: str
    passed: bool


@dataclass(frozen=True)
class Verdict:
    """What the gate found out about a version."""

    version: int
    champion: int | None
    """What it was compared with; None for the first champion, which is compared with its own base model."""
    rules: tuple[Rule, ...]

    @property
    def passed(self) -> bool:
        """Whether every rule passed."""
        return all(rule.passed for rule in self.rules)

    @property
    def failed(self) -> str:
        """Names of the rules that failed; empty if none did."""
        return ", ".join(rule.name for rule in self.rules if not rule.passed)

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Cells of the table, under `HEADER`."""
        return [(rule.name, rule.found, rule.needed, "passed" if rule.passed else "failed") for rule in self.rules]

    def as_json(self) -> str:
        """The verdict as it is kept with its version."""
        return json.dumps(asdict(self) | {"passed": self.passed}, sort_keys=True)

    def as_markdown(self) -> str:
        """The table for the registry's page, below a line that begins with `TITLE`."""
        against = "its base model" if self.champion is None else f"the champion, version {self.champion}"
        lines = [HEADER, ("---",) * len(HEADER), *self.rows()]
        return f"{TITLE} {against}:\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


TITLE = "Gate, against"


def judge(registry: Registry, version: Version, champion: Version | None, section: Gate) -> Verdict:
    """Hold a version against the rules of the gate.

    Args:
        registry: Where both are.
        version: The challenger.
        champion: What it must beat; None for the first champion.
        section: The gate's section of params.yaml.

    Raises:
        IncomparableError: the two are of different corpora or predict in different directions.
        ProsemillError: a package is gone or was altered, or the champion would have to be evaluated on documents that are not here.
    """
    kept = read_kept(registry, version)
    chain = links(registry, version, kept)
    if chain[0].name == PACKAGE and chain[0].state == "broken":
        raise ProsemillError(chain[0].text)
    difference, dirty = version.number_in("logit_difference"), version.tag("git_dirty") != "false"
    equal = difference is not None and difference <= LOGIT_TOLERANCE
    evaluation = kept.evaluation
    rules = (
        _rule_of_lineage(chain),
        Rule("probe", "no number" if difference is None else f"logits differ by {difference:.0e}", f"at most {LOGIT_TOLERANCE:.0e}", equal),
        Rule("git", "changes" if dirty else "clean", "clean" if section.clean_git else "any", not (dirty and section.clean_git)),
        _rule_of_bits_per_byte(registry, version, kept, champion, section),
        _at_most("repetition rate", evaluation.repetition_rate, section.max_repetition_rate),
        _at_most("loop rate", evaluation.loop_rate, section.max_loop_rate),
        _at_most("ms per token, p95", evaluation.time_per_token_ms_p95, section.max_time_per_token_ms),
    )
    return Verdict(version.number, champion.number if champion else None, rules)


def _rule_of_lineage(chain: list[Link]) -> Rule:
    broken = [f"{link.name}: {link.text}" for link in chain if link.state == "broken"]
    not_here = [link.name for link in chain if link.state == "not here"]
    found = "; ".join(broken) or "no link broken" + (f", {' and '.join(not_here)} not here to look at" if not_here else "")
    return Rule("lineage", found, "no link broken", not broken)


def _at_most(name: str, found: float, limit: float) -> Rule:
    return Rule(name, f"{found:.3g}", f"at most {limit:g}", found <= limit)


def _rule_of_bits_per_byte(registry: Registry, version: Version, kept: Kept, champion: Version | None, section: Gate) -> Rule:
    found = kept.evaluation.bits_per_byte
    if champion is None:
        reference, whose = kept.evaluation.base_bits_per_byte, "its base model"
    else:
        reference, whose = _bits_per_byte_of_champion(registry, champion, version, kept), f"version {champion.number}"
    limit = reference - section.min_improvement
    return Rule("bits per byte", f"{found:.4f}", f"at most {limit:.4f} ({whose} has {reference:.4f})", found <= limit)


def _bits_per_byte_of_champion(registry: Registry, champion: Version, challenger: Version, ours: Kept) -> float:
    """On the challenger's documents and windows: as it was evaluated, if it was so, or else evaluated now, once."""
    theirs = read_kept(registry, champion)
    if theirs.altered:
        raise ProsemillError(
            f"{', '.join(sorted(theirs.altered))} of the champion, version {champion.number}, is not what was registered: check out its "
            "commit, run `dvc repro` and `prosemill register`"
        )
    _refuse_other_kind(champion, theirs, challenger, ours)
    conditions = ours.evaluation.conditions
    if theirs.evaluation.conditions == conditions:
        return theirs.evaluation.bits_per_byte
    tag = f"bits_per_byte_on.{sha256_of_value(dict(conditions))[:16]}"
    known = champion.number_in(tag)
    if known is None:
        known = _evaluate_again(registry, champion, ours)
        registry.set_tags(champion.number, {tag: str(known)})
    return known


def _refuse_other_kind(champion: Version, theirs: Kept, challenger: Version, ours: Kept) -> None:
    pairs = {
        "was evaluated on the corpus": (challenger.tag("corpus"), champion.tag("corpus")),
        "predicts": (ours.evaluation.direction, theirs.evaluation.direction),
    }
    for verb, (of_challenger, of_champion) in pairs.items():
        if of_challenger != of_champion:
            raise IncomparableError(
                f"version {challenger.number} {verb} {of_challenger}, the champion (version {champion.number}) {of_champion}: their "
                "numbers do not compare; if it shall take over all the same, set the alias in the MLflow page (`prosemill ui`)"
            )


def _evaluate_again(registry: Registry, champion: Version, ours: Kept) -> float:
    from prosemill.evaluation.measurement import measure_bits_per_byte

    data, arithmetic = ours.evaluation.data, ours.evaluation.conditions["scoring_arithmetic"]
    section = replace(parse_section("evaluate", Evaluate, ours.lock.params["evaluate"], where="dvc.lock"), precision=arithmetic)
    say(f"the champion (version {champion.number}) was evaluated under other conditions: evaluating it on the challenger's documents")
    with registry.whole_package(champion) as package:
        value = measure_bits_per_byte(section, corpus=CORPUS, folder=model_folder(package), digest=data["digest"])
    # Under a name of its own: the run's latest number is of its own documents.
    registry.log_evaluation(champion.run_id, champion.model_id, {f"trained.bits_per_byte_on_{data['digest'][:8]}": value}, data)
    return value
