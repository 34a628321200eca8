"""The end of the service: on SIGTERM newcomers are told to go, and those that are being served may end.

    see_off_on_signals(server, desk, seconds=25.0)      # in the event loop

Left to itself, uvicorn would close its own copy of the listening socket, of which BentoML's supervisor holds another: newcomers would wait
there for nobody. And it would wait for ever for a client that does not read.
"""

import asyncio
import signal
from collections.abc import Callable

import uvicorn

from prosemill.console import say
from prosemill.serving.desk import Desk

LAST_SECONDS = 2
"""In which what has been written is sent, after the last has ended or had to."""
TICK = 0.05


def see_off_on_signals(server: uvicorn.Server, desk: Desk, seconds: float) -> None:
    """Have SIGTERM or Ctrl-C end the service when nobody is being served any more, after so many seconds at most."""
    server.config.timeout_graceful_shutdown = LAST_SECONDS
    see_off = SeeOff(desk, seconds, lambda: server.handle_exit(signal.SIGTERM, None))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, see_off.begin)


class SeeOff:
    """Has the service end once, when it is asked to."""

    def __init__(self, desk: Desk, seconds: float, end: Callable[[], None]) -> None:
        self._desk, self._seconds, self._end = desk, seconds, end
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Begin, unless it has begun: the supervisor sends a signal of its own after the user's."""
        if self._task is None:
            say(f"the service is ending: {self._desk.num_visits} requests have {self._seconds:g} s")
            self._desk.close(self._seconds)
            self._task = asyncio.create_task(self._wait())

    async def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        latest = loop.time() + self._seconds + LAST_SECONDS
        while self._desk.num_visits > 0 and loop.time() < latest:
            await asyncio.sleep(TICK)
        self._end()
