"""A registered model behind HTTP, on this machine alone.

    Service = make_service(ChampionOfRegistry())    # in service.py, which `bentoml serve` finds
    curl http://127.0.0.1:3000/generate --json '{"prompt": "The history of"}'

The routes are a FastAPI application (`app`). The guard in front of everything keeps web pages and strangers out (`guard`). The version
comes from the registry or from a Bento (`source`), and is read with this project's own code, after its digest is verified (`champion`).
BentoML runs it: one worker (`worker`), because each would load a model.
"""

import os
from typing import Any

from prosemill.telemetry import switch_off

switch_off()  # before bentoml is imported

import bentoml  # noqa: E402
import click  # noqa: E402
from bentoml._internal.configuration.containers import BentoMLContainer  # noqa: E402
from bentoml._internal.utils.analytics import usage_stats  # noqa: E402
from bentoml.exceptions import BentoMLException  # noqa: E402

from prosemill.errors import ProsemillError  # noqa: E402
from prosemill.serving.door import Door, Inside, time_no_requests, trace_whole_requests  # noqa: E402
from prosemill.serving.guard import refuse_open_door, refuse_open_doors  # noqa: E402
from prosemill.serving.keys import Keys  # noqa: E402
from prosemill.serving.settings import ServiceSettings  # noqa: E402
from prosemill.serving.source import Source, check_source  # noqa: E402

usage_stats.do_not_track.cache_clear()  # `bentoml serve` has read its switch before it found this

LOCAL = "127.0.0.1"


def make_service(source: Source) -> Any:
    """The service of the version that a source names: a `bentoml.Service`, to be assigned at the top of the module that BentoML imports."""
    inside = Inside()

    @bentoml.service(
        name="prosemill",
        workers=1,
        http={"host": LOCAL, "port": 3000},
        metrics={"enabled": False},  # they are labelled with whatever path a stranger asks for
        logging={"access": {"enabled": False}},  # its lines can be forged with a line break in a path
    )
    class Service:
        """The champion, loaded before the service is ready."""

        @bentoml.on_deployment  # type: ignore[untyped-decorator]
        @staticmethod
        def check() -> None:
            """End `bentoml serve` in one line where there is nothing to serve, or anybody could come in."""
            given = click.get_current_context(silent=True)
            try:
                refuse_open_door((given and given.params.get("host")) or BentoMLContainer.http.host.get())
                Keys.read(os.environ)
                check_source(source, ServiceSettings.read())
            except ProsemillError as error:
                raise BentoMLException(str(error)) from None

        def __init__(self) -> None:
            from prosemill.serving.worker import Worker

            refuse_open_doors()
            self._worker = Worker(source)
            inside.open(self._worker.app)

        @bentoml.on_shutdown  # type: ignore[untyped-decorator]
        def close(self) -> None:
            """End the engine, and with it what is still being written."""
            self._worker.close()

    trace_whole_requests()
    time_no_requests()
    service: Any = Service  # what the decorators have made of the class
    service.add_asgi_middleware(Door, inside=inside)
    return service
