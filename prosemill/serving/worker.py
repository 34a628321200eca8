"""What serves, in BentoML's worker: the champion in an engine, the routes to it, and who looks for another one.

    worker = Worker(source)
    await worker.app(scope, receive, send)
    worker.close()

It imports torch and transformers, which takes seconds, so that BentoML's process above it does without this module.
"""

import signal

import uvicorn

from prosemill.serving.app import make_app
from prosemill.serving.champion import load
from prosemill.serving.desk import Desk
from prosemill.serving.ending import see_off_on_signals
from prosemill.serving.follower import Follower
from prosemill.serving.meters import Meters
from prosemill.serving.settings import ServiceSettings
from prosemill.serving.source import Source

BENTOML_KEEP_ALIVE = 5
"""Seconds for which `bentoml serve` keeps an idle connection open, where its option names no others."""
KEEP_ALIVE = 75
"""Seconds for which we do instead, as nginx does.

Clients in Python (httpx, and so `openai`) give a connection up after 5 seconds too, and whoever is the later by a hair sends a request into
a connection that is being closed.
"""


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
        server = _server()
        if server.config.timeout_keep_alive == BENTOML_KEEP_ALIVE:  # who asks for just this cannot be told from who asks for nothing
            server.config.timeout_keep_alive = KEEP_ALIVE
        see_off_on_signals(server, self._desk, settings.drain)

    def close(self) -> None:
        """End the engine, and with it what is still being written."""
        if self._follower is not None:
            self._follower.end()
        self._desk.champion.close()


def _server() -> uvicorn.Server:
    """Who runs this, which BentoML keeps for itself: SIGTERM goes to it."""
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    assert isinstance(server, uvicorn.Server)
    return server
