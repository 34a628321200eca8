"""The registry's champion, loaded to be served.

champion = load_version(*find_champion(), settings)
champion.writer.answer("The history of", Settings(max_new_tokens=20))
champion.close()
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prosemill.errors import ProsemillError
from prosemill.generation.kernels import Precision
from prosemill.generation.writer import Writer, choose_precision
from prosemill.registry.kept import EVALUATION, read_kept
from prosemill.registry.lineage import model_folder
from prosemill.registry.store import CHAMPION, MODEL_NAME, Registry, Version
from prosemill.serving.settings import ServiceSettings


@dataclass(eq=False)
class Champion:
    """A loaded version."""

    version: int
    precision: Precision
    """In which its weights are held."""
    writer: Writer
    close: Callable[[], None]
    """Ends its engines, and what they are still writing."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Where it is from: `model`, what that is called."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """Content of metrics/evaluation.json; empty where it was not kept, or is not what was registered."""
    base: Writer | None = None
    """The base model, where it is held beside it."""

    @property
    def writers(self) -> list[Writer]:
        """The model, and its base model where that is held."""
        return [self.writer] if self.base is None else [self.writer, self.base]

    @property
    def num_running(self) -> int:
        """Texts that get a token at every step."""
        return sum(writer.engine.num_running for writer in self.writers)


def find_champion() -> tuple[Registry, Version]:
    """The version that is to be served. Raises `ProsemillError` if there is none."""
    registry = Registry.open()
    number = registry.served().champion
    if number is None:
        raise ProsemillError(f"{MODEL_NAME} has no {CHAMPION} to serve: `prosemill register` and `prosemill promote` make one")
    return registry, registry.version(number)


def check_champion() -> None:
    """Raise `ProsemillError` if there is no champion, or its package is not as it was registered."""
    registry, version = find_champion()
    with registry.whole_package(version):
        pass


def load_version(registry: Registry, version: Version, settings: ServiceSettings) -> Champion:
    """Load a version's weights and write a few tokens. Nothing of the package is run, and nothing read before its digest is verified.

    Raises:
        ProsemillError: its package is not as it was registered, or holds no model that can be served.
        RuntimeError: it cannot write.
    """
    precision, metrics = settings.precision, dict[str, Any]()
    try:
        kept = read_kept(registry, version)
    except ProsemillError:
        if precision == "auto":
            raise
    else:
        precision = choose_precision(kept.evaluation.costs) if precision == "auto" else precision
        metrics = {} if EVALUATION.name in kept.altered else kept.metrics
    with ExitStack() as stack:

        def load(folder: Path) -> Writer:
            writer = stack.enter_context(Writer.open(folder, precision=precision, num_rows=settings.num_rows))
            writer.warm_up()
            return writer

        with registry.whole_package(version) as folder:
            writer = load(model_folder(folder))
        facts = {"model": version.tag("model")}
        base = None if settings.base is None else load(settings.base)
        return Champion(version.number, precision, writer, stack.pop_all().close, facts, metrics, base)
