"""What a Bento holds of a version, as the source of what is served: always the same.

seal(folder, number=3, facts=facts)    # when it is built
Service = make_service(Packed(folder))              # where it is served
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prosemill.errors import ProsemillError
from prosemill.registry.digest import folder_digest

FOLDER = "version"
"""Where it lies in a Bento, beside the code."""
MODEL, BASE, EVALUATION = "model", "base", "evaluation.json"
"""In that folder: the model, the base model it was trained from if the Bento was built with it, and the version's own evaluation."""
SEAL = Path("VERSION.json")
"""Says which version it is, and what digest all other files of the folder have."""


@dataclass(frozen=True)
class PackedVersion:
    """The version in a folder."""

    folder: Path
    number: int
    facts: Mapping[str, str]
    """Where it is from."""
    digest: str
    """Of the folder without its seal."""

    @property
    def base(self) -> Path | None:
        """The base model, if the Bento was built with it."""
        return base if (base := self.folder / BASE).is_dir() else None

    @contextmanager
    def model(self) -> Iterator[Path]:
        """The model's folder. Raises `ProsemillError` if any file of the version is not what was packaged."""
        found = folder_digest(self.folder, without=SEAL)
        if found != self.digest:
            raise ProsemillError(
                f"{self.folder} was altered after version {self.number} was packaged (digest {found[:12]}, packaged {self.digest[:12]}): "
                "do not use it; unpack the Bento again, or build it with `prosemill package`"
            )
        yield self.folder / MODEL

    def metrics(self) -> Mapping[str, Any]:
        """Content of metrics/evaluation.json, as it was registered."""
        return dict(json.loads((self.folder / EVALUATION).read_text(encoding="utf-8")))


class Packed:
    """The version of a Bento."""

    is_fixed = True

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self) -> PackedVersion:
        """What the seal says. Raises `ProsemillError` if it is gone or broken."""
        path = self._folder / SEAL
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return PackedVersion(self._folder, int(content["version"]), dict(content["facts"]), str(content["digest"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ProsemillError(f"{path} cannot be read ({error}): unpack the Bento again, or build it with `prosemill package`") from None


def seal(folder: Path, *, number: int, facts: Mapping[str, str]) -> None:
    """Write down which version a folder holds, and the digest of what is in it now."""
    content = {"version": number, "facts": dict(facts), "digest": folder_digest(folder, without=SEAL)}
    (folder / SEAL).write_text(json.dumps(content, indent=2, sort_keys=True), encoding="utf-8")
