"""The second pass: one partition becomes one Parquet file per split, without duplicates.

    run_shards("download", write_shard, tasks, config=…, output=CORPUS)

Memory is that of the partition's ids plus one row group of text.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from prosemill.corpus.frames import frame_headers, frame_text
from prosemill.corpus.partition import is_within
from prosemill.corpus.splits import SplitRule
from prosemill.digests import stable_share
from prosemill.shards import HashingWriter, Row, Task
from prosemill.workspace import SPLITS

if TYPE_CHECKING:
    import pyarrow

ROW_GROUP_BYTES = 8 << 20  # of text; a longer document has a row group of its own
ROW_GROUP_DOCUMENTS = 4096
COMPRESSION_LEVEL = 3
ORDER_SALT = "order"


@dataclass(frozen=True, kw_only=True)
class ShardTask(Task):
    """One partition and the rule of its splits."""

    path: Path
    """The partition's file."""
    rule: SplitRule
    """How documents are split."""
    limit: float | None
    """Largest stable share of an id that stays; None for all."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A document of a partition: all but its text."""

    document_id: str
    source: str
    label: str | None
    official_split: str | None
    order: int
    """Place in the source."""
    digest: str
    """SHA-256 of the text."""
    offset: int
    """Where its text lies in the partition's file."""
    size: int
    """Bytes of the text."""


def write_shard(task: ShardTask, writers: Mapping[str, HashingWriter]) -> dict[str, Row]:
    """Write the partition's documents to the splits' files, in the order of a stable hash of their ids.

    Returns:
        By output: `num_documents`, `num_text_bytes`, and `num_exact_duplicates`, the dropped copies of the documents in it.
    """
    facts: dict[str, Row] = {}
    with task.path.open("rb") as file:
        entries = [entry for entry in _entries(file) if is_within(task.limit, entry.document_id)]
        kept, copies = drop_duplicates(entries)
        splits: dict[str, list[Entry]] = {split: [] for split in SPLITS}
        for entry in kept:
            splits[task.rule.assign(entry.document_id, entry.official_split)].append(entry)
        for output in task.outputs:
            chosen = splits[output.partition("/")[0]]
            chosen.sort(key=lambda entry: (stable_share(entry.document_id, ORDER_SALT), entry.document_id))
            _write_parquet(chosen, file, writers[output])
            facts[output] = {
                "num_documents": len(chosen),
                "num_text_bytes": sum(entry.size for entry in chosen),
                "num_exact_duplicates": sum(copies[entry.digest] for entry in chosen),
            }
    return facts


def drop_duplicates(entries: Iterable[Entry]) -> tuple[list[Entry], Counter[str]]:
    """One entry per text, and how many copies of it were dropped, by the text's digest.

    An official test split's copy stays before a validation split's, that before any other, so no evaluation text is trained on; among
    equals the first in the source's order stays.
    """
    best: dict[str, Entry] = {}
    copies: Counter[str] = Counter()
    for entry in entries:
        held = best.setdefault(entry.digest, entry)
        if held is entry:
            continue
        copies[entry.digest] += 1
        if _precedence(entry) < _precedence(held):
            best[entry.digest] = entry
    return list(best.values()), copies


def _precedence(entry: Entry) -> tuple[int, int]:
    ranks = {"test": 0, "validation": 1}
    return ranks.get(entry.official_split or "", 2), entry.order


def _entries(file: BinaryIO) -> Iterator[Entry]:
    for header, offset, size in frame_headers(file):
        document_id, source, label, official_split, order, digest = header
        yield Entry(document_id, source, label, official_split, order, digest, offset, size)


def _write_parquet(entries: list[Entry], file: BinaryIO, writer: HashingWriter) -> None:
    """Write entries with their texts as Parquet: the same bytes for the same entries."""
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    names = ("document_id", "text", "source", "label")
    schema = pyarrow.schema([pyarrow.field(name, pyarrow.string(), nullable=name == "label") for name in names])
    with ParquetWriter(
        writer,
        schema,
        compression="zstd",
        compression_level=COMPRESSION_LEVEL,
        use_dictionary=["source", "label"],
        write_statistics=False,
    ) as parquet:
        for group in _row_groups(entries):
            parquet.write_table(_table(group, file, schema))


def _table(group: list[Entry], file: BinaryIO, schema: "pyarrow.Schema") -> "pyarrow.Table":
    import pyarrow

    columns = [
        _strings([entry.document_id.encode() for entry in group]),
        _strings([frame_text(file, entry.offset, entry.size) for entry in group]),
        _strings([entry.source.encode() for entry in group]),
        _strings([None if entry.label is None else entry.label.encode() for entry in group]),
    ]
    return pyarrow.Table.from_arrays(columns, schema=schema)


def _strings(values: list[bytes | None] | list[bytes]) -> "pyarrow.StringArray":
    """An Arrow column of UTF-8 values. Unlike `pyarrow.array` it does not copy a lone long text, nor import pandas."""
    import numpy
    import pyarrow

    offsets = numpy.zeros(len(values) + 1, dtype=numpy.int32)
    numpy.cumsum([len(value or b"") for value in values], out=offsets[1:])
    validity = numpy.packbits([value is not None for value in values], bitorder="little")
    buffers = [pyarrow.py_buffer(buffer) for buffer in (validity, offsets, b"".join(value or b"" for value in values))]
    return pyarrow.Array.from_buffers(pyarrow.string(), len(values), buffers)


def _row_groups(entries: list[Entry]) -> Iterator[list[Entry]]:
    group: list[Entry] = []
    num_bytes = 0
    for entry in entries:
        if group and (num_bytes + entry.size > ROW_GROUP_BYTES or len(group) == ROW_GROUP_DOCUMENTS):
            yield group
            group, num_bytes = [], 0
        group.append(entry)
        num_bytes += entry.size
    if group:
        yield group
