"""Who may come in: so many requests and so many tokens at once, and beyond that a time to come back.

with admission.admit(num_tokens):    # raises BusyError
    ...
"""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import fmean

NUM_REMEMBERED = 32  # of the last requests' times, by which a newcomer is told when to come back


class BusyError(Exception):
    """There is no room; `seconds` says when there may be."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"the service is busy: come back in {seconds} s")
        self.seconds = seconds


class Admission:
    """Counts what is in the house. To be used by one thread, the event loop's."""

    def __init__(self, *, max_requests: int, max_tokens: int) -> None:
        self.max_requests, self._max_tokens = max_requests, max_tokens
        self._times: deque[float] = deque(maxlen=NUM_REMEMBERED)
        self.num_requests = 0
        """Requests that are in."""
        self.num_tokens = 0
        """Prompt and new tokens that these may come to."""

    def check(self, num_tokens: int = 1, num_requests: int = 1) -> None:
        """Raise `BusyError` if so many requests, which may come to so many tokens, find no room; by default the smallest that there is.

        A request that is larger than `max_tokens` comes in alone.
        """
        is_too_large = self.num_tokens + num_tokens > self._max_tokens and self.num_requests > 0
        if self.num_requests + num_requests > self.max_requests or is_too_large:
            raise BusyError(max(1, round(fmean(self._times))) if self._times else 1)

    @contextmanager
    def admit(self, num_tokens: int, num_requests: int = 1) -> Iterator[None]:
        """Let requests in until the block ends. Raises `BusyError` as `check` does."""
        self.check(num_tokens, num_requests)
        self.num_requests, self.num_tokens = self.num_requests + num_requests, self.num_tokens + num_tokens
        begin = time.monotonic()
        try:
            yield
        finally:
            self.num_requests, self.num_tokens = self.num_requests - num_requests, self.num_tokens - num_tokens
            self._times.append(time.monotonic() - begin)
