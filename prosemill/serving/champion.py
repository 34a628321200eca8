"""A version that is served: where it comes from, and its weights in an engine.

champion = load(source.find(), settings)
champion.writer.answer("The history of", Settings(max_new_tokens=20))
champion.close()

The registry is a source (prosemill/registry/champion.py), and a Bento's own folder (prosemill/bento/packed.py). A service knows no other
difference between them than that the one may come to name another version.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from prosemill.errors import ProsemillError
from prosemill.generation.kernels import Precision
from prosemill.generation.writer import Writer, choose_precision
from prosemill.registry.evaluation import costs_in
from prosemill.serving.settings import ServiceSettings


class Candidate(Protocol):
    """A version that can be loaded."""

    @property
    def number(self) -> int:
        """Its number in the registry."""

    @property
    def facts(self) -> Mapping[str, str]:
        """Where it is from: `model`, `corpus`, and what leads back to them, as `git_commit`."""

    def model(self) -> AbstractContextManager[Path]:
        """Its model's folder, until the block ends. Raises `ProsemillError` if that is not what was registered, to the byte."""

    def metrics(self) -> Mapping[str, Any]:
        """Content of its metrics/evaluation.json. Raises `ProsemillError` if that cannot be had, or is not what was registered."""

    @property
    def base(self) -> Path | None:
        """A folder of the base model, if one comes with it. To be asked for inside of `model()`, which verifies it."""


class Source(Protocol):
    """Says which version is to be served."""

    @property
    def is_fixed(self) -> bool:
        """Whether it always names the same one."""

    def find(self) -> Candidate:
        """The version. Raises `ProsemillError` if there is none."""


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
    """Where it is from, as its candidate tells."""
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


def check_source(source: Source) -> None:
    """Raise `ProsemillError` if there is nothing to serve, or it is not as it was registered."""
    with source.find().model():
        pass


def load(candidate: Candidate, settings: ServiceSettings) -> Champion:
    """Load a version's weights and write a few tokens. Nothing beside them is run, and nothing read before their digest is verified.

    Raises:
        ProsemillError: it is not as it was registered, or holds no model that can be served.
        RuntimeError: it cannot write.
    """
    with ExitStack() as stack, candidate.model() as folder:
        metrics = _metrics(candidate, settings)
        precision = choose_precision(costs_in(metrics)) if settings.precision == "auto" else settings.precision

        def open_writer(folder: Path) -> Writer:
            writer = stack.enter_context(Writer.open(folder, precision=precision, num_rows=settings.num_rows))
            writer.warm_up()
            return writer

        writer, base_folder = open_writer(folder), settings.base or candidate.base
        base = None if base_folder is None else open_writer(base_folder)
        return Champion(candidate.number, precision, writer, stack.pop_all().close, candidate.facts, metrics, base)


def _metrics(candidate: Candidate, settings: ServiceSettings) -> Mapping[str, Any]:
    """Its evaluation; nothing where it has none, unless a precision is to be chosen by that."""
    try:
        return candidate.metrics()
    except ProsemillError:
        if settings.precision == "auto":
            raise
        return {}
