"""Follows the source: a new champion is loaded beside the one that serves, and takes its place.

follower = Follower(desk, source, settings)
follower.start()
follower.end()
"""

import threading
import time

from prosemill.console import say
from prosemill.errors import first_line
from prosemill.serving.champion import load
from prosemill.serving.desk import Desk
from prosemill.serving.settings import ServiceSettings
from prosemill.serving.source import Source

LONGEST_PAUSE = 300.0
"""Seconds between two tries with a version that does not load."""


class Follower(threading.Thread):
    """Looks for another champion every `settings.follow_seconds`. What keeps one from that is said once, and tried less often."""

    def __init__(self, desk: Desk, source: Source, settings: ServiceSettings) -> None:
        super().__init__(name="follower", daemon=True)
        self._desk, self._source, self._settings = desk, source, settings
        self._said, self._failed = "", 0  # the version that did not load; 0 is none
        self._pause = self._next_try = 0.0
        self._has_ended = threading.Event()

    def end(self) -> None:
        """Follow no longer."""
        self._has_ended.set()

    def run(self) -> None:
        """As the thread."""
        while not self._has_ended.wait(self._settings.follow_seconds):
            try:
                self.look()
            except Exception as error:  # noqa: BLE001 - whatever is wrong with the new one or the registry, the old one serves
                line = f"the champion is not served: {first_line(error)}; version {self._desk.champion.version} goes on"
                if line != self._said:
                    say(line)
                self._said = line

    def look(self) -> None:
        """Look once, and swap if there is another champion. Raises whatever keeps that from being served."""
        served, candidate = self._desk.champion.version, self._source.find()
        if candidate.number == served:
            self._said, self._failed = "", 0
            return
        if candidate.number == self._failed and time.monotonic() < self._next_try:
            return
        try:
            champion = load(candidate, self._settings)
        except Exception:
            self._pause = min(2 * self._pause, LONGEST_PAUSE) if candidate.number == self._failed else self._settings.follow_seconds
            self._failed, self._next_try = candidate.number, time.monotonic() + self._pause
            raise
        say(f"version {candidate.number} is served, version {served} ends what it has begun")
        self._desk.swap(champion)
