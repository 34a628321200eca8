"""Rows of a stranger's Parquet file, in constant memory and without trusting it.

    for row in parquet_rows(path, where="a.parquet", text_key="text", label_key=None): ...

A few kilobytes of Parquet can unpack to gigabytes or crash the reader, so a confined child process unpacks the file, under a byte
budget, into the frames of frames.py, and this process reads those.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prosemill.confined import MIB, run_confined
from prosemill.corpus.document import refuse_long, refuse_wrong_bytes
from prosemill.corpus.folder import open_regular
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
UNPACKED = "unpacked-"
"""How the folders of unpacked files are named, of which a killed run leaves some."""


@dataclass(frozen=True, slots=True)
class ParquetRow:
    """One row: its place (from 0), its own id if it has one, its label, and its text as UTF-8."""

    index: int
    own_id: str | None
    label: str | None
    text: bytes


@dataclass(frozen=True, slots=True)
class RowGroup:
    """What a file's footer says of a row group: its rows, and its bytes in the file and unpacked."""

    num_rows: int
    num_bytes: int
    num_unpacked_bytes: int


@dataclass(frozen=True, slots=True)
class Part:
    """Row groups of a file: from `start` up to `stop`, with the rows before them and their bytes in the file."""

    start: int
    stop: int
    first_row: int
    num_bytes: int


def parquet_rows(path: Path, *, where: str, text_key: str, label_key: str | None, part: Part | None = None) -> Iterator[ParquetRow]:
    """The rows of a file, or of a part of it, in order.

    Raises:
        ProsemillError: the file is broken, lacks a column, holds something other than text, or unpacks to too much.
    """
    num_bytes = part.num_bytes if part else path.stat().st_size
    SHARD_WORK.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=SHARD_WORK, prefix=UNPACKED) as scratch:
        unpacked = Path(scratch) / "rows"
        run_confined(
            unpack,
            path,
            unpacked,
            where,
            text_key,
            label_key,
            FREE_BYTES + UNPACKING * num_bytes,
            part,
            memory_bytes=MEMORY_BYTES,
            seconds=SECONDS + num_bytes / BYTES_PER_SECOND,
            what=where,
            preload=("pyarrow.parquet",),
        )
        with unpacked.open("rb") as file:
            for index, (header, offset, size) in enumerate(frame_headers(file), start=part.first_row if part else 0):
                yield ParquetRow(index, header[0], header[1], frame_text(file, offset, size))


def row_groups(path: Path, *, where: str) -> list[RowGroup]:
    """A file's row groups, by its footer, which a confined child reads.

    Raises:
        ProsemillError: the footer is broken, or its row groups have more bytes than the file: each byte would be unpacked again and again.
    """
    open_regular(path).close()
    groups = run_confined(read_footer, path, where, memory_bytes=MEMORY_BYTES, seconds=SECONDS, what=where, preload=("pyarrow.parquet",))
    sizes = [number for group in groups for number in (group.num_rows, group.num_bytes, group.num_unpacked_bytes)]
    if not groups or min(sizes) < 0 or sum(group.num_bytes for group in groups) > path.stat().st_size:
        raise ProsemillError(f"{where} is not readable Parquet (the sizes in its footer cannot be): replace it")
    return groups


def read_footer(path: Path, where: str) -> list[RowGroup]:
    """What `row_groups` does in the confined child."""
    with _arrow_errors(where), _open(path) as file:
        groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
        return [
            RowGroup(
                group.num_rows,
                sum(group.column(index).total_compressed_size for index in range(group.num_columns)),
                group.total_byte_size,
            )
            for group in groups
        ]


def unpack(path: Path, target: Path, where: str, text_key: str, label_key: str | None, max_bytes: int, part: Part | None = None) -> None:
    """Write a Parquet file's rows, or those of a part of it, as frames [own id, label] and text. Runs in the confined child.

    Raises:
        ProsemillError: as `parquet_rows`.
    """
    num_bytes, index = 0, part.first_row if part else 0
    with target.open("wb") as file:
        for batch in _batches(path, where, text_key, label_key, part):
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


def _batches(path: Path, where: str, text_key: str, label_key: str | None, part: Part | None) -> "Iterator[pyarrow.RecordBatch]":
    """Batches of the columns that count, each validated."""
    batches = _open_and_read(path, where, text_key, label_key, part)
    while True:
        with _arrow_errors(where):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


@contextmanager
def _arrow_errors(where: str) -> Iterator[None]:
    """Only Arrow's own errors mean that the file is broken."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, MemoryError):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ProsemillError(f"{where} is not readable Parquet ({reason}): replace it") from None


def _open(path: Path) -> "pyarrow.parquet.ParquetFile":
    import pyarrow
    from pyarrow.parquet import ParquetFile

    pyarrow.set_cpu_count(1)
    return ParquetFile(
        path,
        memory_map=False,
        pre_buffer=False,
        buffer_size=MIB,
        thrift_string_size_limit=THRIFT_STRING_BYTES,
        thrift_container_size_limit=THRIFT_CONTAINER_ITEMS,
        page_checksum_verification=True,
    )


def _open_and_read(path: Path, where: str, text_key: str, label_key: str | None, part: Part | None) -> "Iterator[pyarrow.RecordBatch]":
    with _open(path) as file:
        columns = _columns(file.schema_arrow, where, text_key, label_key)
        num_rows = max(1, file.metadata.num_rows)
        num_bytes = sum(file.metadata.row_group(group).total_byte_size for group in range(file.metadata.num_row_groups))
        batch_rows = min(MAX_BATCH_ROWS, max(1, BATCH_BYTES * num_rows // max(1, num_bytes)))
        groups = None if part is None else list(range(part.start, part.stop))
        for batch in file.iter_batches(batch_size=batch_rows, row_groups=groups, columns=columns, use_threads=False):
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
