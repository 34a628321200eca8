"""Which split a document belongs to.

    official_split(PurePosixPath("wiki.train.tokens"))  # "train"
    SplitRule(validation_share=0.02, test_share=0.02, official=frozenset()).assign("a.txt", None)

A document that the source puts into validation or test stays there. A split that the source lacks is carved by a stable hash of the
document's id from all the rest (from `train` and from what has no split), so it depends on the id alone and a growing corpus moves nobody.
"""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from prosemill.digests import stable_share

NAMES = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation", "test": "test"}
"""Names of folders and files that mean a split."""

SHARD_OF_SPLIT = re.compile(r"^([a-z]+)-\d+-of-\d+(-[0-9a-f]+)?$")  # train-00000-of-00002.parquet, as the hub names files

SPLIT_SALT = "split"


def official_split(path: PurePosixPath) -> str | None:
    """The split that a path below the root names, or None.

    The outermost folder of such a name decides (`train/test.txt` is an article called test); else the file's name does: `test.txt`,
    `train-00000-of-00002.parquet`, or a dotted part of it, as in `wiki.train.tokens`.
    """
    *folders, name = (part.lower() for part in path.parts)
    stem = name.rpartition(".")[0] or name
    shard = SHARD_OF_SPLIT.match(stem)
    candidates = [*folders, *([shard[1]] if shard else []), *stem.split(".")]
    return next((NAMES[candidate] for candidate in candidates if candidate in NAMES), None)


@dataclass(frozen=True, kw_only=True)
class SplitRule:
    """How documents are split."""

    validation_share: float
    """Share of the documents for validation, where the source has none."""
    test_share: float
    """Share of the documents for the test, where the source has none."""
    official: frozenset[str]
    """The splits that the source has."""

    def assign(self, document_id: str, official_split: str | None) -> str:
        """The document's split: official evaluation splits stay, missing ones are carved from the rest by the id's stable hash."""
        return self.resolve(official_split, self.carve(document_id))

    def carve(self, document_id: str) -> str:
        """The split of a document of a source that has none, by its id alone."""
        share = stable_share(document_id, SPLIT_SALT)
        if share < self.test_share:
            return "test"
        return "validation" if share < self.test_share + self.validation_share else "train"

    def resolve(self, official_split: str | None, carved: str) -> str:
        """The split, given what the source says and what `carve` says; only here does it count which splits the source has."""
        if official_split in ("validation", "test"):
            return official_split
        return "train" if carved in self.official else carved
