"""A version that is served: its weights in an engine.

champion = load(source.find(), settings)
champion.writer.answer("The history of", Settings(max_new_tokens=20))
champion.close()
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prosemill.generation.precision import Precision
from prosemill.generation.writer import Writer, choose_precision
from prosemill.registry.evaluation import costs_in
from prosemill.serving.settings import ServiceSettings
from prosemill.serving.source import Candidate, read_metrics


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


def load(candidate: Candidate, settings: ServiceSettings) -> Champion:
    """Load a version's weights and write a few tokens. Nothing beside them is run, and nothing read before their digest is verified; the
    user's own base model, which `settings` may name, has none.

    Raises:
        ProsemillError: it is not as it was registered, or holds no model that can be served.
        RuntimeError: it cannot write.
    """
    with ExitStack() as stack, candidate.model() as folder:
        metrics = read_metrics(candidate, settings)
        costs = costs_in(metrics) if settings.engine == "own" else {}  # which are those of weights that vLLM does not hold
        precision = choose_precision(costs) if settings.precision == "auto" else settings.precision

        def open_writer(folder: Path) -> Writer:
            opened = Writer.open(folder, precision=precision, num_rows=settings.num_rows, engine=settings.engine)
            writer = stack.enter_context(opened)
            writer.warm_up()
            return writer

        writer, base_folder = open_writer(folder), settings.base or candidate.base
        base = None if base_folder is None else open_writer(base_folder)
        return Champion(candidate.number, precision, writer, stack.pop_all().close, candidate.facts, metrics, base)
