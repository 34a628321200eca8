"""The registry's champion, loaded to be served.

with load_champion(settings) as champion:
    champion.writer.answer("The history of", Settings(max_new_tokens=20))
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from prosemill.errors import ProsemillError
from prosemill.generation.kernels import Precision
from prosemill.generation.writer import Writer, choose_precision
from prosemill.registry.kept import read_kept
from prosemill.registry.lineage import model_folder
from prosemill.registry.store import CHAMPION, MODEL_NAME, Registry, Version
from prosemill.serving.settings import ServiceSettings


@dataclass(frozen=True)
class Champion:
    """A loaded version."""

    version: int
    precision: Precision
    """In which its weights are held."""
    writer: Writer


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


@contextmanager
def load_champion(settings: ServiceSettings) -> Iterator[Champion]:
    """Load the champion's weights and write a few tokens. Nothing of the package is run, and nothing read before its digest is verified.

    Raises:
        ProsemillError: there is none, or its package is not as it was registered.
    """
    registry, version = find_champion()
    precision = settings.precision
    if precision == "auto":
        precision = choose_precision(read_kept(registry, version).evaluation.costs)
    with ExitStack() as stack:
        with registry.whole_package(version) as folder:
            writer = stack.enter_context(Writer.open(model_folder(folder), precision=precision, num_rows=settings.num_rows))
        writer.warm_up()
        yield Champion(version.number, precision, writer)
