"""The real service of a tiny champion: `bentoml serve` beside a registry, in a process of its own."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from prosemill.registry import packaging
from prosemill.registry.registering import register
from prosemill.registry.store import CHAMPION, Registry
from tests.conftest import environment
from tests.end_to_end.house import is_alive
from tests.ports import free_port
from tests.registry.workspace import Workspace
from tests.serving.process import serving

ROOT = Path(__file__).parents[2]
CONTEXT = 4096
"""Tokens that the champion sees: to write them all takes it seconds."""


@dataclass(frozen=True)
class RealService:
    """A service that is ready, until its process ends."""

    url: str
    process: "subprocess.Popen[bytes]"
    log: Path
    """What it and its worker have printed."""

    def processes(self) -> set[psutil.Process]:
        """It and all below it."""
        above = psutil.Process(self.process.pid)
        return {above, *above.children(recursive=True)}


def make_champion(
    folder: Path, tiny_model: Path, texts: list[str], store: Path, *, family: str = "llama", costs: Mapping[str, float] | None = None
) -> Workspace:
    """A workspace with a champion and what `bentoml serve` finds; its package is taken for what was trained.

    Args:
        folder: Where it is made.
        tiny_model: The folder whose tokenizer the champion has.
        texts: The documents of its test split.
        store: A tracking database with nothing in it.
        family: The champion's.
        costs: What its evaluation says of serving in fewer bits, as `cost_int8`.
    """
    workspace = Workspace(folder, tiny_model, texts, context_size=CONTEXT)
    put_service(folder, store)
    with environment({"MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "false"}), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setattr(packaging, "compare", lambda uri, trained: 0.0)
        workspace.train(f"{1:016x}", family=family, costs=costs)
        Registry.open().set_alias(CHAMPION, register().number)
    return workspace


def put_service(folder: Path, store: Path) -> None:
    """Put into a folder what `bentoml serve` finds there: the service, and a registry that is a copy of this one."""
    shutil.copyfile(ROOT / "service.py", folder / "service.py")
    (folder / ".prosemill/mlflow").mkdir(parents=True)
    shutil.copyfile(store, folder / ".prosemill/mlflow/mlflow.db")


def own_environment(folder: Path, **variables: str) -> dict[str, str]:
    """Of a service in a workspace: this process's, without a registry and settings of other tests, and without a GPU."""
    given = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_TRACKING", "PROSEMILL_"))}
    return given | {"BENTOML_HOME": str(folder / "bentoml"), "CUDA_VISIBLE_DEVICES": "", **variables}


@contextmanager
def real_service(folder: Path, log: Path, **variables: str) -> Iterator[RealService]:
    """Serve a workspace's champion while the block runs; what the block has not ended is killed."""
    port = free_port()
    given = own_environment(folder, **{"PROSEMILL_NUM_ROWS": "4"} | variables)
    with serving(port, folder=folder, environment=given, log=log) as process:
        service = RealService(f"http://127.0.0.1:{port}", process, log)
        started = service.processes()
        try:
            yield service
        finally:
            for each in filter(is_alive, started):
                each.kill()
