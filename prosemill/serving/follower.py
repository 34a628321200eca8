"""Follows the source: a new champion is loaded beside the one that serves, and takes its place.

follower = Follower(desk, source, settings)
follower.start()
follower.end()
"""

import threading

from prosemill.console import say
from prosemill.errors import ProsemillError, first_line
from prosemill.serving.champion import load
from prosemill.serving.desk import Desk
from prosemill.serving.settings import ServiceSettings
from prosemill.serving.source import Source


class Follower(threading.Thread):
    """Looks for another champion every `settings.follow_seconds`. One that does not load or cannot write is said once."""

    def __init__(self, desk: Desk, source: Source, settings: ServiceSettings) -> None:
        super().__init__(name="follower", daemon=True)
        self._desk, self._source, self._settings = desk, source, settings
        self._refused: int | None = None
        self._has_ended = threading.Event()

    def end(self) -> None:
        """Follow no longer."""
        self._has_ended.set()

    def run(self) -> None:
        """As the thread."""
        while not self._has_ended.wait(self._settings.follow_seconds):
            self.look()

    def look(self) -> None:
        """Look once, and swap if there is another champion."""
        served = self._desk.champion.version
        try:
            candidate = self._source.find()
        except ProsemillError:  # none, or a registry that does not answer now: what is served stays
            return
        if candidate.number == served:
            self._refused = None
        if candidate.number in (served, self._refused):
            return
        try:
            champion = load(candidate, self._settings)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with the new one, the old one serves
            self._refused = candidate.number
            say(f"version {candidate.number}, the champion, is not served: {first_line(error)}; version {served} goes on")
            return
        say(f"version {candidate.number} is served, version {served} ends what it has begun")
        self._desk.swap(champion)
