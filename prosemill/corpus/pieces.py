"""Files cut and joined into the units that workers read: about `UNIT_BYTES` each, whatever the files' sizes.

    pieces = [piece for name in names for piece in pieces_of(root, name)]
    units = join_pieces(pieces)

A big JSON Lines file is cut at borders of lines, a big Parquet file at borders of row groups; small files are joined. Where the cuts lie
depends on the files alone.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from prosemill.corpus.folder import open_regular
from prosemill.corpus.parquet import row_groups

JSON_LINES = (".jsonl", ".ndjson")
PARQUET = (".parquet",)
UNIT_BYTES = 64 << 20
"""What a kill costs each worker, at most: the reading of so many bytes (or of one longer document, or of one row group)."""

CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A file, or a part of it."""

    name: PurePosixPath
    """The file's path below the root."""
    file_state: tuple[int, int]
    """Size in bytes and time of change of the file: equal states mean an unchanged file, as in DVC."""
    num_bytes: int
    """Bytes of the file that belong to the piece."""
    start: int = 0
    """Its first byte (JSON Lines) or row group (Parquet)."""
    stop: int | None = None
    """One after its last byte or row group; None for all."""
    first_row: int = 0
    """Lines or rows of the file before it."""

    def state(self) -> list[object]:
        """A plain value that changes whenever the piece may have changed."""
        return [self.name.as_posix(), *self.file_state, self.start, self.stop]


def whole_file(root: Path, name: PurePosixPath) -> Piece:
    """A file as one piece."""
    stat = (root / name).stat()
    return Piece(name=name, file_state=(stat.st_size, stat.st_mtime_ns), num_bytes=stat.st_size)


def whole_pieces(root: Path, name: PurePosixPath, _: str) -> Iterator[Piece]:
    """A file that must not be cut, as `pieces_of` would give a small one."""
    yield whole_file(root, name)


def pieces_of(root: Path, name: PurePosixPath, where: str) -> Iterator[Piece]:
    """A file's pieces, in order. Only a file that is larger than a unit is opened.

    Raises:
        ProsemillError: it is Parquet, and broken; `where` names it in the message.
    """
    whole = whole_file(root, name)
    suffix = name.suffix.lower()
    if whole.num_bytes <= UNIT_BYTES or suffix not in JSON_LINES + PARQUET:
        yield whole
        return
    parts = _cut_parquet(root / name, where) if suffix in PARQUET else _cut_json_lines(root / name)
    for start, stop, first_row, num_bytes in parts:
        yield Piece(name=name, file_state=whole.file_state, num_bytes=num_bytes, start=start, stop=stop, first_row=first_row)


def join_pieces(pieces: Iterable[Piece]) -> list[tuple[Piece, ...]]:
    """Consecutive pieces joined to units."""
    units: list[tuple[Piece, ...]] = []
    unit: list[Piece] = []
    num_bytes = 0
    for piece in pieces:
        if unit and num_bytes + piece.num_bytes > UNIT_BYTES:
            units.append(tuple(unit))
            unit, num_bytes = [], 0
        unit.append(piece)
        num_bytes += piece.num_bytes
    return [*units, tuple(unit)] if unit else units


def _cut_json_lines(path: Path) -> Iterator[tuple[int, int, int, int]]:
    """Start, stop, lines before and bytes of each part. Reads the file once, only to count its lines: at the disk's speed."""
    with open_regular(path) as file:
        start = first_line = 0
        while True:
            num_lines, left, chunk = 0, UNIT_BYTES, b""
            while left > 0 and (chunk := file.read(min(CHUNK, left))):
                num_lines += chunk.count(b"\n")
                left -= len(chunk)
            while chunk and not chunk.endswith(b"\n"):
                chunk = file.readline(CHUNK)
                num_lines += chunk.endswith(b"\n")
            stop = file.tell()
            if stop == start:
                return
            yield start, stop, first_line, stop - start
            start, first_line = stop, first_line + num_lines


def _cut_parquet(path: Path, where: str) -> Iterator[tuple[int, int, int, int]]:
    """Start, stop, rows before and bytes of each part: row groups that unpack to about a unit."""
    start = first_row = num_rows = num_packed = num_unpacked = 0
    groups = row_groups(path, where=where)
    for index, group in enumerate(groups):
        if index > start and num_unpacked + group.num_unpacked_bytes > UNIT_BYTES:
            yield start, index, first_row, num_packed
            start, first_row = index, first_row + num_rows
            num_rows = num_packed = num_unpacked = 0
        num_rows += group.num_rows
        num_packed += group.num_bytes
        num_unpacked += group.num_unpacked_bytes
    yield start, len(groups), first_row, num_packed
