"""The long campaigns that try to break Prosemill; `make test` runs the smallest version of each.

    make soak
    python -m benchmarks.soak                                # all of them, some hours
    python -m benchmarks.soak kills promotions --seed 7
    python -m benchmarks.soak --list

A campaign is a benchmark that repeats an attack (`kills`, `promotions`), or a file of tests that repeats what it does more often when
it is told so (`tests.campaigns`), by its name without `test_`. Each has a time limit, and a seed that brings a failure back. What came
of it becomes a row of RELIABILITY.md.
"""

import platform
import re
import time
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from prosemill.errors import ProsemillError, run_main
from prosemill.supervised import run_supervised

SOAK, SEED = "PROSEMILL_SOAK", "PROSEMILL_SOAK_SEED"
"""Variables of the environment by which tests know that they repeat often, and from which seed they draw."""

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "RELIABILITY.md"
COUNTED = re.compile(r"\d+ (?:passed|failed|killed|errors?|of \d+ runs|invalid states)[^=]*")
"""What the last lines of a campaign say of how often it did what."""
NUM_LAST_LINES = 40


@dataclass(frozen=True)
class Campaign:
    """A command, and the minutes after which it is ended; the seed stands in it as `{seed}`."""

    command: tuple[str, ...]
    minutes: float


def campaigns() -> dict[str, Campaign]:
    """All campaigns by name: the benchmarks, then each file of tests that repeats what it does."""
    found = {
        "kills": Campaign(("python", "-m", "benchmarks.kills", "--kills", "30", "--seed", "{seed}"), 90),
        "promotions": Campaign(("python", "-m", "benchmarks.promotions", "--kills", "200", "--seed", "{seed}"), 60),
    }
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        if "from tests.campaigns import" in path.read_text(encoding="utf-8"):
            name = path.relative_to(ROOT / "tests").as_posix().removesuffix(".py").replace("test_", "")
            environment = ("env", f"{SOAK}=1", f"{SEED}={{seed}}")
            command = (*environment, "python", "-m", "pytest", "--quiet", path.relative_to(ROOT).as_posix())
            found[name] = Campaign(command, 60)
    return found


def run_campaign(name: str, campaign: Campaign, seed: int) -> bool:
    """Run a campaign to its end or its limit, and record what came of it; whether it held."""
    command = [part.format(seed=seed) for part in campaign.command]
    last_lines: deque[str] = deque(maxlen=NUM_LAST_LINES)

    def show(line: str) -> None:
        print(line, flush=True)
        last_lines.append(line)

    print(f"# {name}: {' '.join(command)}", flush=True)
    start = time.monotonic()
    try:
        code = run_supervised(command, show, seconds=60 * campaign.minutes)
        outcome = "held" if code == 0 else f"failed with exit status {code}"
    except TimeoutError:
        code, outcome = 1, f"not at its end after {campaign.minutes:g} minutes"

    counts = "; ".join(found.group().strip() for line in last_lines if (found := COUNTED.search(line)))
    record(name, command, f"{outcome} in {time.monotonic() - start:,.0f} s: {counts or 'nothing was counted'}")
    return code == 0


def record(name: str, command: list[str], result: str) -> None:
    """Append a row to RELIABILITY.md."""
    row = (f"{datetime.now(UTC):%Y-%m-%d}", name, f"`{' '.join(command)}`", _processor(), result.replace("|", "/"))
    with RECORD.open("a", encoding="utf-8") as file:
        file.write(f"| {' | '.join(row)} |\n")


def _processor() -> str:
    """What Linux calls the processor; elsewhere its architecture."""
    path = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE) if path.is_file() else []
    return f"{len(names)} × {names[0]}" if names else platform.machine()


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Which; all of them if left out.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of what each of them draws.")] = 0,
    list_only: Annotated[bool, typer.Option("--list", help="Say which there are.")] = False,
) -> None:
    """Run campaigns one after the other, and end with an error if one did not hold."""
    run_main(lambda: _main(names or [], seed, list_only))


def _main(names: list[str], seed: int, list_only: bool) -> None:
    known = campaigns()
    if unknown := [name for name in names if name not in known]:
        raise ProsemillError(f"there is no campaign {unknown[0]!r}: choose from {', '.join(known)}")
    if list_only:
        print("\n".join(f"{name:32} {' '.join(each.command)}" for name, each in known.items()))
        return

    broken = [name for name in names or known if not run_campaign(name, known[name], seed)]
    if broken:
        raise ProsemillError(
            f"these campaigns did not hold: {', '.join(broken)}; the rows are in {RECORD.name}, --seed {seed} repeats them"
        )


if __name__ == "__main__":
    typer.run(main)
