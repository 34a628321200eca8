"""A service of a tiny model on a real port, without BentoML around it."""

import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from prosemill.generation.engine import Engine
from prosemill.generation.writer import Writer
from prosemill.serving.app import make_app
from prosemill.serving.champion import Champion
from prosemill.serving.desk import Desk
from prosemill.serving.door import Door
from prosemill.serving.meters import Meters
from prosemill.serving.settings import ServiceSettings
from tests.serving.real import make_champion

NUM_ROWS = 4
VERSION = 7


@dataclass(frozen=True)
class Served:
    """A service that answers."""

    url: str
    app: FastAPI
    desk: Desk
    registry: CollectorRegistry

    @property
    def engine(self) -> Engine:
        """The champion's."""
        engine = self.desk.champion.writer.engine
        assert isinstance(engine, Engine)
        return engine

    def meter(self, name: str, **labels: str) -> float:
        """What Prometheus is told."""
        value = self.registry.get_sample_value(f"prosemill_{name}", labels)
        assert value is not None, name
        return value


@contextmanager
def serving(folder: Path, **settings: float) -> Iterator[Served]:
    """A model folder's service, until the block ends."""
    chosen = ServiceSettings(**{"num_rows": NUM_ROWS} | settings)  # type: ignore[arg-type]
    with Writer.open(folder, precision="fp32", num_rows=chosen.num_rows) as writer, socket.create_server(("127.0.0.1", 0)) as door:
        app = make_app()
        registry = CollectorRegistry()
        app.state.desk = Desk(Champion(VERSION, "fp32", writer, lambda: None), chosen, Meters(registry))
        server = uvicorn.Server(uvicorn.Config(Door(app, app), log_level="warning"))
        thread = threading.Thread(target=server.run, args=([door],))
        thread.start()
        while not server.started:
            assert thread.is_alive(), "it cannot start"
            time.sleep(0.01)
        try:
            yield Served(f"http://127.0.0.1:{door.getsockname()[1]}", app, app.state.desk, registry)
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="session", autouse=True)
def no_log_between_tests() -> Iterator[None]:
    """Keep a service's lines out of the terminal between two tests, when nothing captures them."""

    def say(line: str) -> None:
        if sys.stderr is not sys.__stderr__:
            sys.stderr.write(f"{line}\n")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prosemill.serving.log.say", say)
        yield


@pytest.fixture(scope="session")
def served(tiny_model: Path) -> Iterator[Served]:
    """The tiny model's service, which all tests share."""
    with serving(tiny_model) as one:
        yield one


@pytest.fixture
def serve(tiny_model: Path) -> Iterator[Callable[..., Served]]:
    """Makes a service of the tiny model with settings of its own."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(serving(tiny_model, **settings))


@pytest.fixture(scope="session")
def champion(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, prose: list[str], empty_store: Path) -> Path:
    """A workspace with a tiny champion."""
    folder = tmp_path_factory.mktemp("champion") / "workspace"
    return make_champion(folder, tiny_model, [text[:400] for text in prose[:6]], empty_store).folder
