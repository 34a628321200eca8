"""What stands between BentoML and the routes: the guard, and a log in which nobody's text is.

    inside = Inside()
    Service.add_asgi_middleware(Door, inside=inside)
    inside.open(app)

Every request goes to our own application. BentoML's routes would stand beside it: an index page for routes that there are not, health in
another shape, and metrics that are labelled with whatever path a stranger asks for.
"""

import time
from functools import partialmethod
from urllib.parse import unquote

from bentoml._internal.server.http.traffic import TimeoutMiddleware
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.trace import get_current_span

from prosemill.serving.guard import HEALTH, Application, Guard, Message, Receive, Send
from prosemill.serving.log import log, log_failure

LONGEST_PATH = 200


class Door:
    """An ASGI application of which BentoML has the start and the end, and another one has all requests."""

    def __init__(self, app: Application, inside: Application) -> None:
        self._bentoml, self._inside = app, Log(Guard(inside))

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass on what comes."""
        if scope["type"] == "lifespan":
            await self._bentoml(scope, receive, send)
        else:
            _forget_query(scope)
            await self._inside(scope, receive, send)


def trace_whole_requests() -> None:
    """Have BentoML's tracing make one span of each request, and none of every event that it sends.

    Those took a third of what a service under load computes in Python, also where nobody takes traces.
    """
    init = partialmethod(OpenTelemetryMiddleware.__init__, exclude_spans=["send", "receive"])
    OpenTelemetryMiddleware.__init__ = init  # type: ignore[method-assign, assignment]


def time_no_requests() -> None:
    """Take away BentoML's limit on a request's time, which cannot be set to none: its timer keeps each request in memory until it is up.

    The guard has a limit for what comes, and the desk one for what goes.
    """

    async def pass_on(self: TimeoutMiddleware, scope: Message, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)

    TimeoutMiddleware.__call__ = pass_on  # type: ignore[method-assign]


class Inside:
    """An application that is made only when BentoML has started, which lets no request in before."""

    def open(self, app: Application) -> None:
        """Have this one take the requests."""
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        await self._app(scope, receive, send)


class Log:
    """Says each request but health's, as a line of JSON, and each failure, without what its message may quote."""

    def __init__(self, app: Application) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        begin, status = time.monotonic(), 0

        async def send_noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive, send_noted)
        except Exception as error:  # noqa: BLE001 - whatever is broken inside, it is said here, and was answered
            log_failure(error)
        finally:
            if scope["type"] == "http" and scope["path"] not in HEALTH:
                seconds = round(time.monotonic() - begin, 3)
                log(method=scope["method"], path=scope["path"][:LONGEST_PATH], status=status, seconds=seconds)


def _forget_query(scope: Message) -> None:
    """Take the query out of the request's trace: no route reads one, but somebody may have put a key there."""
    span, query = get_current_span(), scope["query_string"].decode("latin-1")
    if query and span.is_recording():
        for name, value in dict(getattr(span, "attributes", {})).items():
            if isinstance(value, str):
                span.set_attribute(name, value.replace(query, "").replace(unquote(query), ""))
