"""The registry's champion, as a source of what is served: another one comes with every promotion.

Service = make_service(ChampionOfRegistry())
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from prosemill.errors import ProsemillError
from prosemill.registry.kept import EVALUATION, read_kept
from prosemill.registry.lineage import model_folder
from prosemill.registry.store import CHAMPION, MODEL_NAME, Registry, Version

FACTS = ("model", "corpus", "fingerprint", "git_commit", "corpus_digest", "base_digest", "model_digest", "package_digest")
"""Tags of a version that whoever is served may know."""


@dataclass(frozen=True)
class RegisteredVersion:
    """A version whose package is in the registry."""

    registry: Registry
    version: Version
    base: ClassVar[Path | None] = None
    """A package holds no base model."""

    @property
    def number(self) -> int:
        """Its number."""
        return self.version.number

    @property
    def facts(self) -> Mapping[str, str]:
        """Its tags of `FACTS`."""
        return {name: self.version.tag(name) for name in FACTS}

    @contextmanager
    def model(self) -> Iterator[Path]:
        """The model's folder in its package. Raises `ProsemillError` if the package is not as it was registered."""
        with self.registry.whole_package(self.version) as package:
            yield model_folder(package)

    def metrics(self) -> Mapping[str, Any]:
        """All that its evaluation found. Raises `ProsemillError` if that was not kept, or was altered."""
        kept = read_kept(self.registry, self.version)
        if EVALUATION.name in kept.altered:
            raise ProsemillError(
                f"{EVALUATION.name} of version {self.number} is not what was registered: check out its commit, run `dvc repro` and "
                "`prosemill register`"
            )
        return kept.metrics


class ChampionOfRegistry:
    """Looks each time which version the alias `champion` names."""

    is_fixed = False

    def find(self) -> RegisteredVersion:
        """The champion. Raises `ProsemillError` if there is none."""
        registry = Registry.open()
        number = registry.served().champion
        if number is None:
            raise ProsemillError(f"{MODEL_NAME} has no {CHAMPION} to serve: `prosemill register` and `prosemill promote` make one")
        return RegisteredVersion(registry, registry.version(number))
