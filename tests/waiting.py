"""Waiting for an event, with one limit for the whole suite, which no machine that works misses however busy it is.

until(lambda: ready.is_file(), "the server says that it is ready")
"""

import time
from collections.abc import Callable

LIMIT = 600  # seconds
POLL_SECONDS = 0.05


def until(condition: Callable[[], object], what: str) -> None:
    """Wait until a condition holds; the test fails if it does not within the suite's limit."""
    end = time.monotonic() + LIMIT

    while not condition():
        assert time.monotonic() < end, f"not within {LIMIT:g} s: {what}"
        time.sleep(POLL_SECONDS)
