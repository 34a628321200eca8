"""What serves, in BentoML's worker: the champion in an engine, the routes to it, and who looks for another one.

    worker = Worker(source)
    await worker.app(scope, receive, send)
    worker.close()

It imports torch and transformers, which takes seconds, so that BentoML's process above it does without this module.
"""

from prosemill.serving.app import make_app
from prosemill.serving.champion import load
from prosemill.serving.desk import Desk
from prosemill.serving.ending import see_off_on_signals
from prosemill.serving.follower import Follower
from prosemill.serving.meters import Meters
from prosemill.serving.settings import ServiceSettings
from prosemill.serving.source import Source


class Worker:
    """The running service of what a source names."""

    def __init__(self, source: Source) -> None:
        """Load the champion, in the event loop that serves it. Raises `ProsemillError` if it cannot be served."""
        settings = ServiceSettings.read()
        self.app = make_app()
        self._desk = self.app.state.desk = Desk(load(source.find(), settings), settings, Meters())
        self._follower = None if source.is_fixed else Follower(self._desk, source, settings)
        if self._follower is not None:
            self._follower.start()
        self.app.state.page.begin()
        see_off_on_signals(self._desk, settings.drain)

    def close(self) -> None:
        """End the engine, and with it what is still being written."""
        if self._follower is not None:
            self._follower.end()
        self._desk.champion.close()
