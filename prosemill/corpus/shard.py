"""The second pass: the documents that stay, gathered from all units, become one Parquet file per split and shard.

    run_shards("download", write_shard, tasks, config=…, output=CORPUS)

Memory is that of the shard's ids plus one row group of text.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy

from prosemill.corpus.frames import frame_headers, frame_text
from prosemill.corpus.plan import DROPPED
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
    """One shard of every split."""

    index: int
    """Number of the shard."""
    num_shards: int
    """Number of shards."""
    units: tuple[Path, ...]
    """Each unit's files, without their suffix."""
    starts: tuple[int, ...]
    """Place of each unit's first document, and last the number of all documents."""
    splits: Path
    """One byte per document: its split's place in `SPLITS`, or `DROPPED`."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A document of a shard: all but its text."""

    document_id: str
    source: str
    label: str | None
    split: str
    texts: Path
    """The file with its text."""
    offset: int
    """Where its text lies in the file."""
    size: int
    """Bytes of the text."""


def write_shard(task: ShardTask, writers: Mapping[str, HashingWriter]) -> dict[str, Row]:
    """Write the shard's documents to the splits' files, in the order of a stable hash of their ids.

    Returns:
        By output: `num_documents` and `num_text_bytes`.
    """
    splits: dict[str, list[Entry]] = {split: [] for split in SPLITS}
    for entry in _entries(task):
        splits[entry.split].append(entry)
    facts: dict[str, Row] = {}
    for output in task.outputs:
        chosen = splits[output.partition("/")[0]]
        chosen.sort(key=lambda entry: (stable_share(entry.document_id, ORDER_SALT), entry.document_id))
        _write_parquet(chosen, writers[output])
        facts[output] = {"num_documents": len(chosen), "num_text_bytes": sum(entry.size for entry in chosen)}
    return facts


def _entries(task: ShardTask) -> Iterator[Entry]:
    """The shard's documents that stay, unit by unit."""
    for unit, (start, stop) in zip(task.units, pairwise(task.starts), strict=True):
        codes = numpy.fromfile(task.splits, dtype=numpy.uint8, count=stop - start, offset=start)
        borders = numpy.fromfile(unit.with_suffix(".borders"), dtype="<i8").reshape(-1, task.num_shards + 1)
        texts = unit.with_suffix(".texts")
        with texts.open("rb") as file:
            for first, last in borders[:, task.index : task.index + 2].tolist():
                file.seek(first)
                for (place, document_id, source, label), offset, size in frame_headers(file, last):
                    if codes[place] != DROPPED:
                        yield Entry(document_id, source, label, SPLITS[codes[place]], texts, offset, size)


def _write_parquet(entries: list[Entry], writer: HashingWriter) -> None:
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
            parquet.write_table(_table(group, schema))


def _table(group: list[Entry], schema: "pyarrow.Schema") -> "pyarrow.Table":
    import pyarrow

    columns = [
        _strings([entry.document_id.encode() for entry in group]),
        _strings(_texts(group)),
        _strings([entry.source.encode() for entry in group]),
        _strings([None if entry.label is None else entry.label.encode() for entry in group]),
    ]
    return pyarrow.Table.from_arrays(columns, schema=schema)


def _texts(group: list[Entry]) -> list[bytes]:
    """The texts of a row group, each file opened once and read in its order."""
    texts = [b""] * len(group)
    order = sorted(range(len(group)), key=lambda index: (group[index].texts, group[index].offset))
    for path, members in groupby(order, key=lambda index: group[index].texts):
        with path.open("rb") as file:
            for index in members:
                texts[index] = frame_text(file, group[index].offset, group[index].size)
    return texts


def _strings(values: list[bytes | None] | list[bytes]) -> "pyarrow.StringArray":
    """An Arrow column of UTF-8 values. Unlike `pyarrow.array` it does not copy a lone long text, nor import pandas."""
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
