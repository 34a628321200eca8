"""What a person sees while a stage works: a progress bar on a terminal, plain lines everywhere else.

with progress("tokenize", total=24, unit="shards") as bar:
    bar.advance(note="1,234,567 tokens/s")
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

TICK = 1.0  # seconds between two looks at the clock
PLAIN_INTERVAL = 5.0  # seconds between two plain lines, or a twentieth of the time so far if that is more

BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {unit} [{elapsed}<{remaining}{postfix}]"


class Progress(Protocol):
    """Counts work done; `note` is a short remark shown beside the count."""

    def advance(self, amount: int = 1, note: str = "") -> None: ...


@contextmanager
def progress(description: str, total: int, unit: str) -> Iterator[Progress]:
    """Show progress towards `total` units: a bar on a terminal, otherwise a line every few seconds and one at the end."""
    if sys.stderr.isatty():
        with _Bar(description, total, unit) as bar, _ticking(bar.refresh):
            yield bar
    else:
        lines = _Lines(description, total, unit)
        with _ticking(lines.refresh):
            yield lines
        lines.finish()


def say(message: str) -> None:
    """Print one line for the reader of the terminal or the log."""
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()


def print_rows(header: Sequence[str], rows: Sequence[Sequence[str]], *, title: str, numeric: Sequence[bool] = (), bold: str = "") -> None:
    """Print a table on standard output: drawn on a terminal, aligned plain lines without the title otherwise.

    Args:
        header: Names of the columns.
        rows: Cells, as text.
        title: Stands above.
        numeric: For each column whether it is aligned to the right; none is if left out.
        bold: Name of a column to be drawn in bold.
    """
    to_right = list(numeric) or [False] * len(header)
    if not sys.stdout.isatty():
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        align = [str.rjust if is_number else str.ljust for is_number in to_right]
        for row in (header, *rows):
            line = "  ".join(pad(cell, width) for pad, cell, width in zip(align, row, widths, strict=True))
            sys.stdout.write(f"{line.rstrip()}\n")
        sys.stdout.flush()
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title)
    for name, is_number in zip(header, to_right, strict=True):
        table.add_column(name, justify="right" if is_number else "left", style="bold" if name == bold else None, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)


@contextmanager
def _ticking(refresh: Callable[[], None]) -> Iterator[None]:
    """Call `refresh` from time to time, so that a long step does not look like a halt."""
    over = threading.Event()

    def tick() -> None:
        while not over.wait(TICK):
            refresh()

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class _Bar:
    def __init__(self, description: str, total: int, unit: str) -> None:
        from tqdm import tqdm

        columns = os.get_terminal_size(sys.stderr.fileno()).columns
        width: dict[str, Any] = {"dynamic_ncols": True} if columns else {"ncols": 80}  # tqdm fills a width of 0 with nothing
        self._bar = tqdm(total=total, desc=description, unit=unit, leave=True, bar_format=BAR, **width)

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, amount: int = 1, note: str = "") -> None:
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(amount)

    def refresh(self) -> None:
        self._bar.refresh()


class _Lines:
    def __init__(self, description: str, total: int, unit: str) -> None:
        self._description, self._total, self._unit = description, total, unit
        self._done, self._note, self._start = 0, "", time.monotonic()
        self._last_line, self._last_said = self._start, -1

    def advance(self, amount: int = 1, note: str = "") -> None:
        self._done, self._note = self._done + amount, note

    def refresh(self) -> None:
        now = time.monotonic()
        if now - self._last_line >= max(PLAIN_INTERVAL, (now - self._start) / 20):
            self._say()

    def finish(self) -> None:
        if self._last_said != self._done:
            self._say()

    def _say(self) -> None:
        self._last_line, self._last_said = time.monotonic(), self._done
        elapsed = self._last_line - self._start
        note = f", {self._note}" if self._note else ""
        say(f"{self._description}: {self._done:,}/{self._total:,} {self._unit} in {elapsed:.0f} s{note}")
