"""A registry with three versions, on an SQLite file or on a server with PostgreSQL; every test starts with no alias set."""

import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import mlflow
import pytest

from prosemill.registry import packaging, store
from prosemill.registry.registering import register
from prosemill.registry.store import CHALLENGER, CHAMPION, PREVIOUS_CHAMPION, Registry, State
from tests.conftest import environment
from tests.registry.servers import mlflow_server, postgresql, postgresql_programs
from tests.registry.workspace import Workspace

WITHOUT_POSTGRESQL = "PostgreSQL's server programs are not installed (Debian: apt-get install postgresql)"
NUM_VERSIONS = 3

on_every_server = pytest.mark.parametrize(
    "kind",
    ["sqlite", pytest.param("postgresql", marks=pytest.mark.skipif(postgresql_programs() is None, reason=WITHOUT_POSTGRESQL))],
    indirect=True,
)
"""For what depends on the server: how it keeps aliases, tags and artifacts. Our own logic is the same on each."""


@dataclass(frozen=True)
class Server:
    """A tracking server."""

    folder: Path
    address: str

    @property
    def environment(self) -> dict[str, str]:
        """What leads a process to it."""
        return {"MLFLOW_TRACKING_URI": self.address, "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "false"}

    def artifacts(self, pattern: str) -> list[Path]:
        """Artifacts that match a pattern: beside the server, or where the experiment of a file has them."""
        experiment = mlflow.get_experiment_by_name("prosemill")
        assert experiment is not None
        location = experiment.artifact_location
        root = Path(location.removeprefix("file://")) if location.startswith("file:") else self.folder
        return list(root.glob(f"**/{pattern}"))


@pytest.fixture(scope="session")
def texts(prose: list[str]) -> list[str]:
    """The documents of a test split."""
    return [text[:400] for text in prose[:6]]


@dataclass(frozen=True)
class Kind:
    """A kind of tracking server, with a workspace whose three models are its versions 1 to 3, each better than the one before it."""

    server: Server
    registered: Workspace


@pytest.fixture(scope="session")
def kinds(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, texts: list[str]) -> Iterator[Callable[[str], Kind]]:
    """Each kind of server by its name, made when it is asked for first and kept: a fixture with params would make it anew in each file."""
    with ExitStack() as stack:

        @cache
        def kind(name: str) -> Kind:
            folder = tmp_path_factory.mktemp(f"server-{name}")
            server = stack.enter_context(running_server(name, folder))
            return Kind(server, register_versions(server, folder, tiny_model, texts))

        yield kind


@contextmanager
def running_server(name: str, folder: Path) -> Iterator[Server]:
    if name == "sqlite":
        yield Server(folder, f"sqlite:///{folder}/mlflow.db")
        return
    with postgresql() as store, mlflow_server(folder, store) as address:
        yield Server(folder, address)


def register_versions(server: Server, folder: Path, tiny_model: Path, texts: list[str]) -> Workspace:
    """Train and register; the first version's package alone is loaded back in a process of its own, which takes seconds each."""
    workspace = Workspace(folder / "workspace", tiny_model, texts)
    with environment(server.environment), pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace.folder)
        for number in range(1, NUM_VERSIONS + 1):
            workspace.train(f"{number:016x}", seed=number, bits_per_byte=2.4 - 0.1 * number)
            assert register().number == number
            patch.setattr(packaging, "compare", lambda uri, trained: 0.0)
    return workspace


@pytest.fixture
def kind(request: pytest.FixtureRequest, kinds: Callable[[str], Kind]) -> Kind:
    """The SQLite file, or what `on_every_server` names."""
    return kinds(getattr(request, "param", "sqlite"))


@pytest.fixture
def server(kind: Kind) -> Server:
    """The tracking server."""
    return kind.server


@pytest.fixture
def registered(kind: Kind) -> Workspace:
    """The workspace that is registered there."""
    return kind.registered


@pytest.fixture
def registry(server: Server, registered: Workspace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """The registry, with no alias and no trace of another test, while the workspace is the current folder."""
    monkeypatch.chdir(registered.folder)
    with environment(server.environment):
        found = Registry.open()
        for alias in (CHALLENGER, CHAMPION, PREVIOUS_CHAMPION):
            found.set_alias(alias, None)
        found.set_state(State())
        yield found


@pytest.fixture
def fresh(tmp_path: Path, tiny_model: Path, texts: list[str], empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """An empty workspace with a store of its own, which is the current folder.

    Packages are not loaded back in a process of their own: test_packaging.py and `registered` do that.
    """
    workspace = empty_workspace(tmp_path, tiny_model, texts, monkeypatch)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    Path(".prosemill/mlflow").mkdir(parents=True)
    shutil.copyfile(empty_store, ".prosemill/mlflow/mlflow.db")
    return workspace


@pytest.fixture
def anywhere(server: Server, tmp_path: Path, tiny_model: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    """As `fresh`, on a server that other tests use too, in a registered model of the test's own."""
    workspace = empty_workspace(tmp_path, tiny_model, texts, monkeypatch)
    monkeypatch.setattr(store, "MODEL_NAME", f"prosemill-{uuid.uuid4().hex[:8]}")
    with environment(server.environment):
        yield workspace


def empty_workspace(folder: Path, tiny_model: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace that nothing was trained in, as the current folder, whose packages are taken for what was trained."""
    workspace = Workspace(folder / "workspace", tiny_model, texts)
    monkeypatch.chdir(workspace.folder)
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    monkeypatch.setattr(packaging, "compare", lambda uri, trained: 0.0)
    return workspace
