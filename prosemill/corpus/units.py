"""The first pass: every unit of the source becomes a few files, in parallel and durably, so that a kill costs the units in work.

    store = read_units(source, about=as_plain(corpus), num_shards=8, rule=rule, near_duplicate_threshold=0.8, contamination_words=13)

Of a unit are kept, beside its texts spread by the shard they will lie in: a record of fixed size for each document, its MinHash signature
and band keys, and the hashes of the word runs of those documents that may be for evaluation. What follows decides on these numbers alone.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray

from prosemill.corpus.document import Document, Source, Unit, has_text
from prosemill.corpus.frames import frame, frame_headers
from prosemill.corpus.near_duplicates import NUM_PERMUTATIONS, Places, Signature, band_keys, rows_of_band, signature
from prosemill.corpus.ngrams import Hashes, ngram_hashes
from prosemill.corpus.splits import SplitRule
from prosemill.digests import sha256_of_value, stable_share
from prosemill.errors import ProsemillError
from prosemill.shards import HashingWriter, Row, Task, finish_shards
from prosemill.workspace import SPLITS

FORMAT = 2
"""Raised when the units' format changes."""

RUN_BYTES = 64 << 20  # of text held in memory, then written shard by shard
RUN_DOCUMENTS = 1 << 16
LIMIT_SALT = "limit"
DIGEST_BYTES = 16
NO_SPLIT = len(SPLITS)
"""Code of a document that the source puts in no split."""

KINDS = ("bands", "borders", "documents", "ngrams", "signatures", "texts")
DOCUMENT = numpy.dtype([("id", f"S{DIGEST_BYTES}"), ("text", f"S{DIGEST_BYTES}"), ("limit", "<f8"), ("official", "u1"), ("carved", "u1")])
"""Digests of id and text, stable share of the id for `max_documents`, and two splits as places in `SPLITS`: the source's and the carved."""

NGRAM = numpy.dtype([("document", "<u4"), ("hash", "<u8")])


@dataclass(frozen=True, kw_only=True)
class UnitTask(Task):
    """A unit of the source, and what to find out about its documents."""

    unit: Unit
    """What to read."""
    num_shards: int
    """Shards of the corpus, over which the texts are spread."""
    rule: SplitRule
    """How splits are carved."""
    rows_of_band: int | None
    """Rows of a band of the signatures; None to make none."""
    contamination_words: int | None
    """Words of the runs that are hashed; None to hash none."""


def read_units(
    source: Source,
    *,
    about: Row,
    num_shards: int,
    rule: SplitRule,
    near_duplicate_threshold: float | None,
    contamination_words: int | None,
) -> "Store":
    """Read all units that no earlier run has read; `about` is the source's settings, which say with the units' states what they hold.

    Raises:
        ProsemillError: the source is broken, or has no text at all.
    """
    num_rows = None if near_duplicate_threshold is None else rows_of_band(near_duplicate_threshold)
    config: Row = {
        "format": FORMAT,
        "source": about,
        "num_shards": num_shards,
        "carved": [rule.test_share, rule.validation_share],
        "rows_of_band": num_rows,
        "contamination_words": contamination_words,
    }
    tasks = [
        UnitTask(
            outputs=tuple(f"{index:06}.{kind}" for kind in KINDS),
            inputs=(sha256_of_value(unit.state()),),
            unit=unit,
            num_shards=num_shards,
            rule=rule,
            rows_of_band=num_rows,
            contamination_words=contamination_words,
        )
        for index, unit in enumerate(source.units())
    ]
    folder, rows = finish_shards("read", read_unit, tasks, config=config)
    store = Store(folder=folder, rows=[row for row in rows if row["file"].endswith(".texts")], num_shards=num_shards)
    if not store.num_documents:
        num_empty = store.dropped["num_empty"]
        raise ProsemillError(f"the corpus is empty: {num_empty} documents were read and none has text; check `download.corpus`")
    return store


def read_unit(task: UnitTask, writers: Mapping[str, HashingWriter]) -> dict[str, Row]:
    """Read a unit and write its files.

    Returns:
        For the texts `num_documents`, `num_text_bytes`, `dropped` (counts by metric name), `official` (splits that the source names) and
        `documents_sha256` (of all that was read); nothing for the other files.
    """
    names = dict(zip(KINDS, task.outputs, strict=True))
    dropped, official, digest = Counter(num_empty=0), set(), hashlib.sha256()
    run = _Run(task, {kind: writers[name] for kind, name in names.items()})
    for document in task.unit.documents(dropped):
        text_digest = hashlib.sha256(document.text)
        about = [document.document_id, document.source, document.label, document.official_split]
        digest.update(frame(about, text_digest.digest())[0] + text_digest.digest())
        if not has_text(document.text):
            dropped["num_empty"] += 1
            continue
        if document.official_split is not None:
            official.add(document.official_split)
        run.add(document, text_digest.digest())
    run.close()
    facts: Row = {
        "num_documents": run.num_documents,
        "num_text_bytes": run.num_text_bytes,
        "dropped": dict(dropped),
        "official": sorted(official),
        "documents_sha256": digest.hexdigest(),
    }
    return {name: facts if kind == "texts" else {} for kind, name in names.items()}


class _Run:
    """Collects documents in memory and writes them when they are many: a run of the unit."""

    def __init__(self, task: UnitTask, writers: Mapping[str, HashingWriter]) -> None:
        self._task, self._writers = task, writers
        self._keys: list[Hashes] = []  # of all runs: a band's keys are written together
        self.num_documents = self.num_text_bytes = 0
        self._clear()

    def add(self, document: Document, text_digest: bytes) -> None:
        """Take one document, which has text."""
        task = self._task
        place, self.num_documents = self.num_documents, self.num_documents + 1
        header = [place, document.document_id, document.source, document.label]
        shard = int.from_bytes(text_digest[:8], "big") % task.num_shards
        self._texts.setdefault(shard, []).extend(frame(header, document.text))
        self._num_bytes += len(document.text)
        carved = task.rule.carve(document.document_id)
        id_digest = hashlib.sha256(document.document_id.encode()).digest()
        codes = code_of(document.official_split), code_of(carved)
        share = stable_share(document.document_id, LIMIT_SALT)
        self._documents.append((id_digest[:DIGEST_BYTES], text_digest[:DIGEST_BYTES], share, *codes))
        if task.rows_of_band is not None:
            self._signatures.append(signature(document.text))
        if task.contamination_words is not None and {document.official_split, carved} & {"validation", "test"}:
            for hashes in ngram_hashes(document.text, task.contamination_words):
                rows = numpy.empty(len(hashes), dtype=NGRAM)
                rows["document"], rows["hash"] = place, hashes
                self._writers["ngrams"].write(rows.tobytes())
        if self._num_bytes >= RUN_BYTES or len(self._documents) == RUN_DOCUMENTS:
            self._flush()

    def close(self) -> None:
        """Write what is left."""
        self._flush()
        for band in range(len(self._keys[0])):
            for keys in self._keys:
                self._writers["bands"].write(keys[band].tobytes())

    def _clear(self) -> None:
        self._texts: dict[int, list[bytes]] = {}
        self._documents: list[tuple[bytes, bytes, float, int, int]] = []
        self._signatures: list[Signature | None] = []
        self._num_bytes = 0

    def _flush(self) -> None:
        texts = self._writers["texts"]
        borders = [texts.tell()]
        for shard in range(self._task.num_shards):
            texts.write(b"".join(self._texts.pop(shard, [])))
            borders.append(texts.tell())
        self._writers["borders"].write(numpy.array(borders, dtype="<i8").tobytes())
        self._writers["documents"].write(numpy.array(self._documents, dtype=DOCUMENT).tobytes())
        self._flush_signatures()
        self.num_text_bytes += self._num_bytes
        self._clear()

    def _flush_signatures(self) -> None:
        num_rows = self._task.rows_of_band
        if num_rows is None:
            self._keys.append(numpy.empty((0, 0), dtype=numpy.uint64))
            return
        has_words = numpy.array([one is not None for one in self._signatures], dtype=bool)
        signatures = numpy.zeros((len(has_words), NUM_PERMUTATIONS), dtype="<u2")
        if has_words.any():
            signatures[has_words] = [one for one in self._signatures if one is not None]
        self._writers["signatures"].write(signatures.tobytes())
        self._keys.append(band_keys(signatures, num_rows) * has_words)


def code_of(split: str | None) -> int:
    """A split as its place in `SPLITS`, or `NO_SPLIT`."""
    return NO_SPLIT if split is None else SPLITS.index(split)


@dataclass(frozen=True, kw_only=True)
class Store:
    """What the first pass left on disk. A document's place is its number among all that have text, in the source's order."""

    folder: Path
    """Where the units' files lie."""
    rows: list[Row]
    """By unit, what the work said of its texts."""
    num_shards: int
    """Shards that the texts are spread over."""

    @cached_property
    def starts(self) -> list[int]:
        """Place of each unit's first document, and last the number of all documents."""
        return [0, *accumulate(int(row["num_documents"]) for row in self.rows)]

    @property
    def num_documents(self) -> int:
        """Documents that have text."""
        return self.starts[-1]

    @property
    def official(self) -> list[str]:
        """The splits that the source has."""
        return sorted({split for row in self.rows for split in row["official"]})

    @property
    def dropped(self) -> Counter[str]:
        """Counts of what was left out when reading, by metric name."""
        total: Counter[str] = Counter()
        for row in self.rows:
            total.update(row["dropped"])
        return total

    @property
    def documents_sha256(self) -> str:
        """Digest of all documents as they were read."""
        return sha256_of_value([row["documents_sha256"] for row in self.rows])

    @property
    def texts_sha256(self) -> str:
        """Digest of all units' texts."""
        return sha256_of_value([row["sha256"] for row in self.rows])

    def path(self, unit: int, kind: str) -> Path:
        """One of a unit's files."""
        return self.folder / f"{unit:06}.{kind}"

    def documents(self, unit: int) -> NDArray[Any]:
        """A unit's records, of type `DOCUMENT`."""
        return numpy.fromfile(self.path(unit, "documents"), dtype=DOCUMENT)

    def ngrams(self, unit: int) -> NDArray[Any]:
        """The word runs of a unit's documents that may be for evaluation, of type `NGRAM`; `document` counts from the unit's first."""
        return numpy.fromfile(self.path(unit, "ngrams"), dtype=NGRAM)

    def column(self, field: str) -> NDArray[Any]:
        """One field of all records."""
        return numpy.concatenate([self.documents(unit)[field] for unit in range(len(self.rows))])

    def band(self, band: int) -> Hashes:
        """Every document's key of one band."""
        counts = [int(row["num_documents"]) for row in self.rows]
        return numpy.concatenate(
            [
                numpy.fromfile(self.path(unit, "bands"), dtype="<u8", count=count, offset=8 * band * count)
                for unit, count in enumerate(counts)
            ]
        )

    def signatures(self, documents: Places) -> Signature:
        """The signatures [documents, permutations] of some documents."""
        found = numpy.empty((len(documents), NUM_PERMUTATIONS), dtype=numpy.uint16)
        units = numpy.searchsorted(self.starts, documents, side="right") - 1
        for unit in numpy.unique(units).tolist():
            mine = units == unit
            stored = numpy.memmap(self.path(unit, "signatures"), dtype="<u2", mode="r").reshape(-1, NUM_PERMUTATIONS)
            found[mine] = stored[documents[mine] - self.starts[unit]]
        return found

    def headers(self, unit: int) -> Iterator[list[Any]]:
        """[place in the unit, id, source, label] of each of a unit's documents, in the order of the file."""
        with self.path(unit, "texts").open("rb") as file:
            for header, _, _ in frame_headers(file):
                yield header
