"""Where the test suite spends its time: `python -m benchmarks.suite [--json FILE] [PYTEST ARGUMENTS]`.

Runs the suite once, as `make test` does, and prints three Markdown tables: seconds by file, by fixture, and by kind of work. A kind is
what the test's own thread waited for, or did:

- `imports`: the first import of a module, with all that it imports;
- `pipelines`: a child process that runs stages (`dvc repro`, `dvc exp`, `python -m flows`, `python -m stages.…`);
- `servers`: a child process that is, sets up or stops a server (Prefect, MLflow, BentoML, PostgreSQL, the local stack);
- `other programs`: any other child process, for example git or pip;
- `sleeping`: `time.sleep`, hence every loop that polls;
- `tests themselves`: the rest.

Seconds are wall time summed over the processes of the run: two processes for ten minutes are 1,200 s. A fixture's seconds are its
own, without those of the fixtures that it asks for.
"""

import builtins
import json
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter  # itself: a test may replace the one of `time`
from typing import Any

import pytest

KINDS = {
    "servers": (
        "bentoml serve",
        "mlflow server",
        "prefect server",
        "prefect.server",
        "prosemill.cli import app",
        "prosemill up",
        "initdb",
        "pg_ctl",
    ),
    "pipelines": ("dvc repro", "dvc exp", "-m flows", "-m stages.", "from flows", "benchmarks.kills"),
}
"""What a command line contains that is of a kind; any other is one of the other programs."""
KEY = "benchmarks.suite"
SHOWN_FILES, SHOWN_FIXTURES, SHOWN_TESTS = 40, 25, 40


class Clock:
    """Seconds of one thread by kind; of nested work, the outermost counts."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._thread = threading.get_ident()
        self._busy = False

    @contextmanager
    def counting(self, kind: str) -> Iterator[None]:
        """Count the block's wall time as this kind."""
        if self._busy or threading.get_ident() != self._thread:
            yield
            return

        self._busy, start = True, perf_counter()
        try:
            yield
        finally:
            self._busy = False
            self.seconds[kind] += perf_counter() - start

    def take(self) -> dict[str, float]:
        """What was counted since the last call."""
        taken, self.seconds = dict(self.seconds), defaultdict(float)
        return taken


def kind_of(command: object) -> str:
    """The kind of a child process by its command."""
    words = [command] if isinstance(command, str | bytes | Path) else list(command)  # type: ignore[call-overload]
    line = " ".join(str(word) for word in words)
    return next((kind for kind, parts in KINDS.items() if any(part in line for part in parts)), "other programs")


class Recorder:
    """A pytest plugin that adds to every report what its phase waited for and which fixtures it set up."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.fixtures: defaultdict[str, float] = defaultdict(float)
        self._patch()

    def _patch(self) -> None:
        """Count imports, sleeps and waits for child processes where they happen."""
        clock = self.clock

        def counted(function: Callable[..., Any], kind: Callable[..., str]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                with clock.counting(kind(*arguments)):
                    return function(*arguments, **options)

            return call

        original = builtins.__import__

        def importing(name: str, *arguments: Any, **options: Any) -> Any:
            if name in sys.modules:
                return original(name, *arguments, **options)
            with clock.counting("imports"):
                return original(name, *arguments, **options)

        builtins.__import__ = importing
        time.sleep = counted(time.sleep, lambda *_: "sleeping")
        for method in ("wait", "communicate"):
            waits = counted(getattr(subprocess.Popen, method), lambda process, *_: kind_of(process.args))
            setattr(subprocess.Popen, method, waits)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, Any]:
        """Count a fixture's own set-up; the fixtures that it asks for have been set up before."""
        start = perf_counter()
        try:
            return (yield)
        finally:
            self.fixtures[f"{fixturedef.baseid}::{fixturedef.argname}"] += perf_counter() - start

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, Any, Any]:
        """Hand over what was counted since the last report, in a form that goes from process to process."""
        report = yield
        found = {"kinds": self.clock.take(), "fixtures": dict(self.fixtures)}
        report.user_properties = [*report.user_properties, (KEY, json.dumps(found))]
        self.fixtures.clear()
        return report


class Collector:
    """A pytest plugin of the process that the reports come to; it writes a line of JSON for each."""

    def __init__(self, path: Path) -> None:
        self.path, self.start = path, perf_counter()
        path.write_text("", encoding="utf-8")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write a phase's seconds and what they were spent on."""
        found = json.loads(str(dict(report.user_properties).get(KEY, "{}")))
        row = {"test": report.nodeid, "phase": report.when, "seconds": report.duration, "outcome": report.outcome}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row | found | {"wall": perf_counter() - self.start}) + "\n")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take the file of the rows as an option, which a worker process gets too."""
    parser.addoption("--suite-json", type=Path, default=None)


def pytest_configure(config: pytest.Config) -> None:
    """Record where tests run, collect where reports arrive; a run in one process does both."""
    is_worker = hasattr(config, "workerinput")
    if is_worker or not config.getoption("numprocesses", None):
        config.pluginmanager.register(Recorder())
    if not is_worker:
        config.pluginmanager.register(Collector(config.getoption("suite_json")))


def table(heads: tuple[str, str], values: Mapping[str, float], most: int) -> str:
    """A Markdown table of the largest values, and one row for all others."""
    ranked = sorted(values.items(), key=lambda pair: -pair[1])
    rows = [(name, seconds) for name, seconds in ranked[:most] if seconds >= 1]
    rows.append(("all others", sum(values.values()) - sum(seconds for _, seconds in rows)))
    lines = [f"| {heads[0]} | {heads[1]} |", "|---|---|", *(f"| {name} | {seconds:,.0f} |" for name, seconds in rows)]
    return "\n".join(lines)


def summary(path: Path) -> str:
    """The tables of a recorded run."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    files, tests, kinds, fixtures = (defaultdict[str, float](float) for _ in range(4))
    for row in rows:
        files[row["test"].partition("::")[0]] += row["seconds"]
        tests[row["test"]] += row["seconds"]
        known = row.get("kinds", {})
        for kind, seconds in known.items():
            kinds[kind] += seconds
        kinds["tests themselves"] += row["seconds"] - sum(known.values())
        for name, seconds in row.get("fixtures", {}).items():
            fixtures[name] += seconds
    outcomes = Counter(row["outcome"] for row in rows if row["phase"] == "call" or row["outcome"] != "passed")
    head = f"{dict(outcomes)}, {rows[-1]['wall']:,.0f} s of wall time, {sum(files.values()):,.0f} s of tests"
    parts = [
        table(("kind", "s"), kinds, len(kinds)),
        table(("file", "s"), files, SHOWN_FILES),
        table(("fixture", "s"), fixtures, SHOWN_FIXTURES),
        table(("test", "s"), tests, SHOWN_TESTS),
    ]
    return "\n\n".join([head, *parts])


def main(arguments: list[str]) -> int:
    """Run the suite and print the tables; what pytest itself returned."""
    path = Path("suite.json")
    if arguments[:1] == ["--json"]:
        path, arguments = Path(arguments[1]), arguments[2:]
    shared = ["--numprocesses", "auto", "--maxprocesses", "4", "--max-worker-restart", "0"]
    # As one word, or pytest would take the path for one of those that its own root is to be found from.
    command = [sys.executable, "-m", "pytest", "-p", "benchmarks.suite", f"--suite-json={path.absolute()}", *shared, *arguments]
    code = subprocess.run(command, check=False).returncode
    print(summary(path))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
