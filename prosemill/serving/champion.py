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
from typing import Protocol

from prosemill.generation.kernels import Precision
from prosemill.generation.writer import Writer, choose_precision
from prosemill.serving.settings import ServiceSettings


class Candidate(Protocol):
    """A version that can be loaded."""

    @property
    def number(self) -> int:
        """Its number in the registry."""

    @property
    def facts(self) -> Mapping[str, str]:
        """Where it is from: `model`, `corpus`, and what leads back to them, as `git_commit`."""

    def costs(self) -> Mapping[str, float]:
        """What `choose_precision` is to know, by its own evaluation. Raises `ProsemillError` if that cannot be had."""

    def model(self) -> AbstractContextManager[Path]:
        """Its model's folder, until the block ends. Raises `ProsemillError` if that is not what was registered, to the byte."""


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
    """Ends its engine, and what that is still writing."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Where it is from, as its candidate tells."""


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
    precision = choose_precision(candidate.costs()) if settings.precision == "auto" else settings.precision
    with ExitStack() as stack:
        with candidate.model() as folder:
            writer = stack.enter_context(Writer.open(folder, precision=precision, num_rows=settings.num_rows))
        writer.warm_up()
        return Champion(candidate.number, precision, writer, stack.pop_all().close, candidate.facts)
