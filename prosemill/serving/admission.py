"""Who may come in: so many requests and so many tokens at once, and beyond that a time to come back.

with admission.admit() as take:    # raises BusyError
    take(num_tokens)               # and so does this, once the request has been read
    ...
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
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

    def __init__(self, *, max_requests: int, max_tokens: int, note_rejection: Callable[[], None]) -> None:
        """Begin with nobody; `note_rejection` is called for everyone who finds no room."""
        self.max_requests, self._max_tokens, self._note_rejection = max_requests, max_tokens, note_rejection
        self._times: deque[float] = deque(maxlen=NUM_REMEMBERED)
        self.num_requests = 0
        """Requests that are in."""
        self.num_tokens = 0
        """Prompt and new tokens that these may come to."""

    def check(self, num_requests: int = 1, num_tokens: int = 1) -> None:
        """Raise `BusyError` if so many more requests and tokens find no room.

        Tokens that are more than `max_tokens` come in where there are no others.
        """
        is_too_large = self.num_tokens + num_tokens > self._max_tokens and self.num_tokens > 0
        if self.num_requests + num_requests > self.max_requests or is_too_large:
            self._note_rejection()
            raise BusyError(max(1, round(fmean(self._times))) if self._times else 1)

    @contextmanager
    def admit(self, num_requests: int = 1) -> Iterator[Callable[[int], None]]:
        """Let requests in until the block ends. Raises `BusyError` as `check` does.

        Yields:
            What is to be called once it is known to how many tokens they may come, and raises `BusyError` too.
        """
        self.check(num_requests)
        taken, begin = 0, time.monotonic()

        def take(num_tokens: int) -> None:
            nonlocal taken
            self.check(0, num_tokens)
            taken, self.num_tokens = num_tokens, self.num_tokens + num_tokens

        self.num_requests += num_requests
        try:
            yield take
        finally:
            self.num_requests, self.num_tokens = self.num_requests - num_requests, self.num_tokens - taken
            if taken:  # the time of those that were turned away says nothing
                self._times.append(time.monotonic() - begin)
