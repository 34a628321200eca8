"""What a person sees while a stage works: a progress bar on a terminal, plain lines everywhere else."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

PLAIN_INTERVAL = 5.0  # seconds between two plain lines


class Progress(Protocol):
    """Counts work done; `note` is a short remark shown beside the count."""

    def advance(self, amount: int = 1, note: str = "") -> None: ...


@contextmanager
def progress(description: str, total: int, unit: str) -> Iterator[Progress]:
    """Show progress towards `total` units: a bar on a terminal, otherwise a line every few seconds and one at the end."""
    if sys.stderr.isatty():
        with _Bar(description, total, unit) as bar:
            yield bar
    else:
        lines = _Lines(description, total, unit)
        yield lines
        lines.finish()


def say(message: str) -> None:
    """Print one line for the reader of the terminal or the log."""
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()


class _Bar:
    def __init__(self, description: str, total: int, unit: str) -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=total, desc=description, unit=f" {unit}", leave=True, dynamic_ncols=True)

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, amount: int = 1, note: str = "") -> None:
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(amount)


class _Lines:
    def __init__(self, description: str, total: int, unit: str) -> None:
        self._description, self._total, self._unit = description, total, unit
        self._done, self._note, self._start = 0, "", time.monotonic()
        self._last_line, self._last_said = self._start, -1

    def advance(self, amount: int = 1, note: str = "") -> None:
        self._done, self._note = self._done + amount, note
        if time.monotonic() - self._last_line >= PLAIN_INTERVAL:
            self._say()

    def finish(self) -> None:
        if self._last_said != self._done:
            self._say()

    def _say(self) -> None:
        self._last_line, self._last_said = time.monotonic(), self._done
        elapsed = self._last_line - self._start
        note = f", {self._note}" if self._note else ""
        say(f"{self._description}: {self._done:,}/{self._total:,} {self._unit} in {elapsed:.0f} s{note}")
