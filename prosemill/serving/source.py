"""Where the version that is served comes from.

with source.find().model() as folder:    # a model folder that is as it was registered
    ...

The registry is a source (prosemill/registry/champion.py), and a Bento's own folder (prosemill/bento/packed.py). A service knows no other
difference between them than that the one may come to name another version.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from prosemill.errors import ProsemillError
from prosemill.families import family_of
from prosemill.generation.engines import check_engine, check_family
from prosemill.serving.settings import ServiceSettings

BASE_FILES = ("config.json", "tokenizer.json", "*.safetensors")


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


def check_source(source: Source, settings: ServiceSettings) -> None:
    """Look at all that is to be served, before seconds are spent on loading it.

    Raises:
        ProsemillError: there is nothing to serve, it is not as it was registered, or the settings name a base model that is none or an
            engine that is not here or serves no such model.
    """
    check_engine(settings.engine, settings.precision)
    candidate = source.find()
    with candidate.model() as folder:
        read_metrics(candidate, settings)
        check_family(settings.engine, family_of(folder), whose=f"version {candidate.number}")
    if settings.base is None:
        return
    missing = [name for name in BASE_FILES if not any(settings.base.glob(name))]
    if missing:
        raise ProsemillError(f"PROSEMILL_BASE={settings.base} has no {' and no '.join(missing)}: name a folder with a model")
    from prosemill.pretrained import refuse_remote_code  # with torch, which takes seconds

    refuse_remote_code(settings.base)
    check_family(settings.engine, family_of(settings.base), whose=f"PROSEMILL_BASE={settings.base}")


def read_metrics(candidate: Candidate, settings: ServiceSettings) -> Mapping[str, Any]:
    """Content of a candidate's metrics/evaluation.json, inside of its `model()`; empty if there is none that can be trusted.

    Raises:
        ProsemillError: there is none, and a precision is to be chosen by it.
    """
    try:
        return candidate.metrics()
    except ProsemillError as error:
        if settings.precision == "auto":
            raise ProsemillError(f"{error}; or set PROSEMILL_PRECISION, which is chosen by it") from None
        return {}
