"""The first pass: read the source once, in constant memory, into partitions by a hash of the text.

    partition = read_or_make_partition(source, fingerprint, num_shards=8, max_documents=None)

Equal texts meet in one partition, so the second pass finds exact duplicates without seeing the whole corpus. A marker, written last, makes
the pass whole; without it a later run begins again.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from heapq import heappush, heapreplace
from pathlib import Path
from typing import Any

from prosemill.console import progress
from prosemill.corpus.document import Document, Source, has_text
from prosemill.corpus.frames import frame, frame_headers
from prosemill.digests import stable_share
from prosemill.errors import ProsemillError
from prosemill.shards import write_durably
from prosemill.workspace import SHARD_WORK

FORMAT = 1
"""Raised when the partitions' format changes, so that those of an older version are not trusted."""

BUFFER_BYTES = 64 << 20  # held in memory before it is appended to the partitions' files
MARKER = "COMPLETE"
LIMIT_SALT = "limit"
ID_BYTES = 16  # of the digests that the check of the ids compares


@dataclass(frozen=True, kw_only=True)
class Partition:
    """A whole first pass."""

    folder: str
    """Where the partitions' files lie."""
    digests: list[str]
    """SHA-256 of each partition's headers; a header holds its text's digest."""
    sizes: list[int]
    """Bytes of each partition's file."""
    official: list[str]
    """The splits that the source has."""
    limit: float | None
    """Largest stable share of an id that `max_documents` keeps; None for all."""
    num_kept: int
    """Documents that are neither empty nor over the limit; duplicates count."""
    dropped: dict[str, int]
    """Counts of what was left out, by metric name."""
    facts: dict[str, Any]
    """What the source says of itself."""

    def path(self, index: int) -> Path:
        """A partition's file."""
        return Path(self.folder) / _name(index)


def read_or_make_partition(source: Source, fingerprint: str, *, num_shards: int, max_documents: int | None) -> Partition:
    """The first pass of this source: one that an earlier run finished, or a new one. Those of other fingerprints are removed.

    Raises:
        ProsemillError: the source is broken or empty, or an id stands for two texts.
    """
    folder = SHARD_WORK / f"partition-{fingerprint}"
    for stale in SHARD_WORK.glob("partition-*"):
        if stale != folder:
            shutil.rmtree(stale)
    found = _read_marker(folder)
    if found is not None:
        return found
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    try:
        partition = _make(source, folder, num_shards, max_documents)
        write_durably(folder / MARKER, json.dumps(asdict(partition)))
    except BaseException:
        shutil.rmtree(folder)  # half a pass is of no use, and a full disk gets its space back
        raise
    return partition


def remove_partition(partition: Partition) -> None:
    """Free the disk once the second pass is done."""
    shutil.rmtree(partition.folder)


class Limit:
    """Keeps the documents of the `max_documents` ids with the smallest stable hash, in memory for that many numbers.

    Documents of one id stay or go together, so the choice does not depend on the source's order.
    """

    def __init__(self, max_documents: int | None) -> None:
        self._size = max_documents
        self._heap: list[float] = []  # negated shares: the largest is on top
        self._documents: Counter[float] = Counter()
        self.num_kept = self.num_over = 0

    def admits(self, document_id: str) -> bool:
        """Whether the document is among those seen so far that stay; a later one may still push it out."""
        self.num_kept += 1
        if self._size is None:
            return True
        share = stable_share(document_id, LIMIT_SALT)
        if share not in self._documents:
            if len(self._heap) < self._size:
                heappush(self._heap, -share)
            elif share > -self._heap[0]:
                self._give_up(1)
                return False
            else:
                self._give_up(self._documents.pop(-heapreplace(self._heap, -share)))
        self._documents[share] += 1
        return True

    def threshold(self) -> float | None:
        """The largest share that stays; None if all stay."""
        return -self._heap[0] if self.num_over else None

    def _give_up(self, num_documents: int) -> None:
        self.num_over += num_documents
        self.num_kept -= num_documents


def is_within(limit: float | None, document_id: str) -> bool:
    """Whether the finished limit keeps a document."""
    return limit is None or stable_share(document_id, LIMIT_SALT) <= limit


@dataclass
class _Files:
    """Appends to many files through one bounded buffer; opens one at a time, as the system limits how many may be open."""

    folder: Path
    buffers: dict[str, list[bytes]] = field(default_factory=dict)
    num_buffered: int = 0

    def append(self, name: str, pieces: Iterable[bytes]) -> None:
        buffer = self.buffers.setdefault(name, [])
        for piece in pieces:
            buffer.append(piece)
            self.num_buffered += len(piece)
        if self.num_buffered >= BUFFER_BYTES:
            self.flush()

    def flush(self, *, durably: bool = False) -> None:
        for name, buffer in self.buffers.items():
            with (self.folder / name).open("ab") as file:
                file.writelines(buffer)
                buffer.clear()
                if durably:
                    file.flush()
                    os.fsync(file.fileno())
        self.num_buffered = 0


def _make(source: Source, folder: Path, num_shards: int, max_documents: int | None) -> Partition:
    files = _Files(folder, {name: [] for index in range(num_shards) for name in (_name(index), _ids_name(index))})
    hashes = [hashlib.sha256() for _ in range(num_shards)]
    limit, num_empty, official = Limit(max_documents), 0, set()
    for order, document in enumerate(_with_progress(source)):
        if not has_text(document.text):
            num_empty += 1
            continue
        if document.official_split is not None:
            official.add(document.official_split)
        if not limit.admits(document.document_id):
            continue
        digest = hashlib.sha256(document.text)
        index = int.from_bytes(digest.digest()[:8], "big") % num_shards
        pieces = frame(_header(document, order, digest.hexdigest()), document.text)
        hashes[index].update(pieces[0])
        files.append(_name(index), pieces)
        id_digest = hashlib.sha256(document.document_id.encode()).digest()
        files.append(_ids_name(int.from_bytes(id_digest[-8:], "big") % num_shards), (id_digest[:ID_BYTES], digest.digest()[:ID_BYTES]))
    files.flush(durably=True)
    if not limit.num_kept:
        raise ProsemillError(f"the corpus is empty: {num_empty} documents were read and none has text; check `download.corpus`")
    _refuse_ambiguous_ids(folder, num_shards)
    return Partition(
        folder=str(folder),
        digests=[partition_hash.hexdigest() for partition_hash in hashes],
        sizes=[(folder / _name(index)).stat().st_size for index in range(num_shards)],
        official=sorted(official),
        limit=limit.threshold(),
        num_kept=limit.num_kept,
        dropped={"num_empty": num_empty, "num_over_limit": limit.num_over, **source.dropped},
        facts=source.facts(),
    )


def _header(document: Document, order: int, digest: str) -> list[Any]:
    return [document.document_id, document.source, document.label, document.official_split, order, digest]


def _with_progress(source: Source) -> Iterator[Document]:
    with progress("read the corpus", total=source.num_bytes, unit="bytes") as bar:
        yield from source.documents(bar.advance)


def _refuse_ambiguous_ids(folder: Path, num_shards: int) -> None:
    """Raise `ProsemillError` if an id stands for two texts; then delete the ids' files, which served this check alone."""
    import numpy

    for index in range(num_shards):
        path = folder / _ids_name(index)
        pairs = numpy.fromfile(path, dtype=[("id", f"S{ID_BYTES}"), ("text", f"S{ID_BYTES}")])
        pairs = pairs[numpy.argsort(pairs["id"], kind="stable")]
        same_id = pairs["id"][1:] == pairs["id"][:-1]
        ambiguous = pairs["id"][1:][same_id & (pairs["text"][1:] != pairs["text"][:-1])]
        if len(ambiguous):
            _name_ambiguous(folder, num_shards, bytes(ambiguous[0]))
        path.unlink()


def _name_ambiguous(folder: Path, num_shards: int, id_digest: bytes) -> None:
    places: dict[str, str] = {}
    for index in range(num_shards):
        with (folder / _name(index)).open("rb") as file:
            for (document_id, source, *_, digest), _, _ in frame_headers(file):
                if hashlib.sha256(document_id.encode()).digest()[:ID_BYTES].rstrip(b"\0") == id_digest:
                    places.setdefault(digest, f"{document_id!r} from {source}")
    first, second, *_ = places.values()
    raise ProsemillError(f"the document id {first} stands for another text in {second}: give each text an id of its own, or drop the key")


def _read_marker(folder: Path) -> Partition | None:
    """The finished pass in a folder, or None when it must be made (again)."""
    try:
        partition = Partition(**json.loads((folder / MARKER).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    paths = [partition.path(index) for index in range(len(partition.sizes))]
    whole = all(path.is_file() and path.stat().st_size == size for path, size in zip(paths, partition.sizes, strict=True))
    return partition if whole else None


def _name(index: int) -> str:
    return f"{index:05}.documents"


def _ids_name(index: int) -> str:
    return f"{index:05}.ids"
