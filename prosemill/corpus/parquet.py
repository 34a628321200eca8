"""Rows of a stranger's Parquet file, in constant memory and without trusting it.

    for row in parquet_rows(path, where="a.parquet", text_key="text", label_key=None): ...

A few kilobytes of Parquet can unpack to gigabytes or crash the reader, so a confined child process unpacks the file, under a byte
budget, into the frames of frames.py, and this process reads those.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prosemill.confined import MIB, run_confined
from prosemill.corpus.document import refuse_long, refuse_wrong_bytes
from prosemill.corpus.frames import frame, frame_headers, frame_text
from prosemill.corpus.rows import ID_KEYS, id_of, label_of, require_keys
from prosemill.errors import ProsemillError
from prosemill.workspace import SHARD_WORK

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

MEMORY_BYTES = 1536 * MIB  # address space of the child beyond its libraries
BATCH_BYTES = 8 * MIB  # text decoded at a time, if the file's own sizes are true
MAX_BATCH_ROWS = 4096
FREE_BYTES = 64 * MIB  # what any file may unpack to ...
UNPACKING = 100  # ... and how many times its own size beside that; zstd reaches about 4 on prose
SECONDS = 60.0
BYTES_PER_SECOND = 1_000_000  # of the packed file, a tenth of what was measured
THRIFT_STRING_BYTES = 32 * MIB  # limits of the footer's parser
THRIFT_CONTAINER_ITEMS = 1_000_000


@dataclass(frozen=True, slots=True)
class ParquetRow:
    """One row: its place (from 0), its own id if it has one, its label, and its text as UTF-8."""

    index: int
    own_id: str | None
    label: str | None
    text: bytes


def parquet_rows(path: Path, *, where: str, text_key: str, label_key: str | None) -> Iterator[ParquetRow]:
    """The rows of a file, in order.

    Raises:
        ProsemillError: the file is broken, lacks a column, holds something other than text, or unpacks to too much.
    """
    num_bytes = path.stat().st_size
    SHARD_WORK.mkdir(exist_ok=True)
    # Named like the partitions, which the next run removes if this one is killed.
    with tempfile.TemporaryDirectory(dir=SHARD_WORK, prefix="partition-unpacked-") as scratch:
        unpacked = Path(scratch) / "rows"
        run_confined(
            unpack,
            path,
            unpacked,
            where,
            text_key,
            label_key,
            FREE_BYTES + UNPACKING * num_bytes,
            memory_bytes=MEMORY_BYTES,
            seconds=SECONDS + num_bytes / BYTES_PER_SECOND,
            what=where,
            preload=("pyarrow.parquet",),
        )
        with unpacked.open("rb") as file:
            for index, (header, offset, size) in enumerate(frame_headers(file)):
                yield ParquetRow(index, header[0], header[1], frame_text(file, offset, size))


def unpack(path: Path, target: Path, where: str, text_key: str, label_key: str | None, max_bytes: int) -> None:
    """Write a Parquet file's rows as frames [own id, label] and text. Runs in the confined child.

    Raises:
        ProsemillError: as `parquet_rows`.
    """
    num_bytes = index = 0
    with target.open("wb") as file:
        for batch in _batches(path, where, text_key, label_key):
            for text, row in zip(_texts(batch, text_key), _other_columns(batch, text_key), strict=True):
                place = f"{where} row {index}"
                refuse_wrong_bytes(text, f"{place}, `{text_key}`")
                refuse_long(len(text), place)
                own_id = id_of(row, "", place) or None
                pieces = frame([own_id, label_of(row, label_key, place)], text)
                num_bytes += sum(map(len, pieces))
                if num_bytes > max_bytes:
                    raise ProsemillError(_too_much(where, path.stat().st_size, max_bytes))
                file.writelines(pieces)
                index += 1


def _too_much(where: str, num_bytes: int, max_bytes: int) -> str:
    return (
        f"{where} has {num_bytes:,} bytes and unpacks to more than {max_bytes:,}: it is hostile, or very repetitive; "
        "if you trust it, save it as JSON Lines"
    )


def _batches(path: Path, where: str, text_key: str, label_key: str | None) -> "Iterator[pyarrow.RecordBatch]":
    """Batches of the columns that count, each validated. Only Arrow's own errors mean that the file is broken."""
    import pyarrow

    batches = _open_and_read(path, where, text_key, label_key)
    while True:
        try:
            batch = next(batches, None)
        except (pyarrow.ArrowException, OSError) as error:
            if isinstance(error, MemoryError):
                raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ProsemillError(f"{where} is not readable Parquet ({reason}): replace it") from None
        if batch is None:
            return
        yield batch


def _open_and_read(path: Path, where: str, text_key: str, label_key: str | None) -> "Iterator[pyarrow.RecordBatch]":
    import pyarrow
    from pyarrow.parquet import ParquetFile

    pyarrow.set_cpu_count(1)
    with ParquetFile(
        path,
        memory_map=False,
        pre_buffer=False,
        buffer_size=MIB,
        thrift_string_size_limit=THRIFT_STRING_BYTES,
        thrift_container_size_limit=THRIFT_CONTAINER_ITEMS,
        page_checksum_verification=True,
    ) as file:
        columns = _columns(file.schema_arrow, where, text_key, label_key)
        num_rows = max(1, file.metadata.num_rows)
        num_bytes = sum(file.metadata.row_group(group).total_byte_size for group in range(file.metadata.num_row_groups))
        batch_rows = min(MAX_BATCH_ROWS, max(1, BATCH_BYTES * num_rows // max(1, num_bytes)))
        for batch in file.iter_batches(batch_size=batch_rows, columns=columns, use_threads=False):
            batch.drop_columns([text_key]).validate(full=True)  # the text is checked row by row, to name the row
            yield batch


def _columns(schema: "pyarrow.Schema", where: str, text_key: str, label_key: str | None) -> list[str]:
    """Names of the columns to read. Raises `ProsemillError` if one is missing or there twice, or the text's is not text."""
    require_keys(schema.names, [text_key, label_key], where)
    columns = [name for name in dict.fromkeys([text_key, label_key, *ID_KEYS]) if name is not None and name in schema.names]
    for name in columns:
        if schema.names.count(name) > 1:
            raise ProsemillError(f"{where} has the column `{name}` twice: rename one")
    kind = schema.field(text_key).type
    if not _is_text(kind):
        raise ProsemillError(f"{where}: column `{text_key}` holds {kind}, not text; name the text's column with `text_key`")
    return columns


def _is_text(kind: "pyarrow.DataType") -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        return _is_text(kind.value_type)
    tests = (types.is_string, types.is_large_string, types.is_string_view, types.is_binary, types.is_large_binary, types.is_binary_view)
    return any(test(kind) for test in tests)


def _texts(batch: "pyarrow.RecordBatch", text_key: str) -> Iterator[bytes]:
    """The text column's raw bytes; null is no text."""
    import pyarrow

    column = batch.column(batch.schema.get_field_index(text_key))
    if isinstance(column, pyarrow.DictionaryArray):
        column = column.dictionary_decode()
    return (value.as_py() or b"" for value in column.cast(pyarrow.large_binary()))


def _other_columns(batch: "pyarrow.RecordBatch", text_key: str) -> Iterator[dict[str, Any]]:
    """The other columns' values, row by row."""
    others = [name for name in batch.schema.names if name != text_key]
    columns = {name: batch.column(batch.schema.get_field_index(name)) for name in others}
    return ({name: column[index].as_py() for name, column in columns.items()} for index in range(batch.num_rows))
