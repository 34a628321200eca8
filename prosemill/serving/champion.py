"""The registry's champion, loaded to be served.

champion = load_version(*find_champion(), settings)
champion.writer.answer("The history of", Settings(max_new_tokens=20))
champion.close()
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from prosemill.errors import ProsemillError
from prosemill.generation.kernels import Precision
from prosemill.generation.writer import Writer, choose_precision
from prosemill.registry.kept import read_kept
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
    """Ends its engine, and what that is still writing."""


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
    precision = settings.precision
    if precision == "auto":
        precision = choose_precision(read_kept(registry, version).evaluation.costs)
    with ExitStack() as stack:
        with registry.whole_package(version) as folder:
            writer = stack.enter_context(Writer.open(model_folder(folder), precision=precision, num_rows=settings.num_rows))
        writer.warm_up()
        return Champion(version.number, precision, writer, stack.pop_all().close)
