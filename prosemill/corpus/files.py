"""The user's own files: plain text and Markdown (a file is a document), JSON Lines and Parquet (a row is a document).

    source = FilesSource(FilesCorpus(source="files", root="texts"))

Ids: a file's path below the root; a row's own `document_id` or `id`, else the path with `#` and the line (from 1) or Parquet row (from 0).
Text is kept byte for byte; only a byte-order mark at a file's start is dropped, and counted.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from prosemill.corpus.document import BYTE_ORDER_MARK, MAX_DOCUMENT_BYTES, Document, refuse_long, refuse_wrong_bytes
from prosemill.corpus.folder import list_files, open_regular, real_folder
from prosemill.corpus.parquet import parquet_rows
from prosemill.corpus.rows import id_of, kind_of, label_of, text_of
from prosemill.corpus.splits import official_split
from prosemill.digests import sha256_of_file, sha256_of_value
from prosemill.errors import ProsemillError
from prosemill.params import FilesCorpus

if TYPE_CHECKING:
    from hashlib import _Hash

JSON_LINES = (".jsonl", ".ndjson")
PARQUET = (".parquet",)

Advance = Callable[[int], object]


class FilesSource:
    """The files below `root` that match the patterns, in the order of their paths."""

    def __init__(self, corpus: FilesCorpus) -> None:
        self._corpus = corpus
        self._root = real_folder(corpus.root, "root")
        self._names = list_files(self._root, corpus.patterns)
        if not self._names:
            patterns = ", ".join(corpus.patterns) or "the empty list of patterns"
            raise ProsemillError(f"`download.corpus.patterns`: no file below {corpus.root} matches {patterns}; correct root or patterns")
        self._digests: list[list[str]] = []
        self.dropped: Counter[str] = Counter(num_byte_order_marks=0)
        self.num_bytes = sum((self._root / name).stat().st_size for name in self._names)

    def state(self) -> object:
        """Names, sizes and times of change of the files."""
        return file_states(self._root, self._names)

    def documents(self, advance: Advance) -> Iterator[Document]:
        """Every file's documents."""
        for name in self._names:
            digest = hashlib.sha256()
            yield from self._read(name, digest, advance)
            self._digests.append([name.as_posix(), digest.hexdigest()])

    def facts(self) -> dict[str, Any]:
        """The digest of all files, and the licence that params give."""
        return {
            "source": "files",
            "patterns": list(self._corpus.patterns),
            "num_files": len(self._names),
            "sha256": sha256_of_value(self._digests),
            "license": self._corpus.license,
            "attribution": self._corpus.attribution,
        }

    def _read(self, name: PurePosixPath, digest: "_Hash", advance: Advance) -> Iterator[Document]:
        suffix = name.suffix.lower()
        if suffix in PARQUET:
            yield from self._read_parquet(name, digest, advance)
        elif suffix in JSON_LINES:
            yield from self._read_json_lines(name, digest, advance)
        elif suffix == ".json":
            raise ProsemillError(f"{self._where(name)} is JSON, which is not read: save it as JSON Lines (.jsonl), one object a line")
        else:
            yield self._read_text(name, digest, advance)

    def _read_text(self, name: PurePosixPath, digest: "_Hash", advance: Advance) -> Document:
        where = self._where(name)
        with open_regular(self._root / name) as file:
            data = file.read(MAX_DOCUMENT_BYTES + 1)
        refuse_long(len(data), where)
        refuse_wrong_bytes(data, where)
        digest.update(data)
        advance(len(data))
        text = self._without_mark(data)
        return Document(document_id=name.as_posix(), text=text, source=name.as_posix(), official_split=official_split(name))

    def _read_json_lines(self, name: PurePosixPath, digest: "_Hash", advance: Advance) -> Iterator[Document]:
        file_name, source, split = self._where(name), name.as_posix(), official_split(name)
        offset = number = 0
        with open_regular(self._root / name) as file:
            while line := file.readline(MAX_DOCUMENT_BYTES + 1):
                number += 1
                where = f"{file_name} line {number}"
                refuse_long(len(line), where)
                refuse_wrong_bytes(line, file_name, offset)
                digest.update(line)
                row = self._without_mark(line) if offset == 0 else line
                offset += len(line)
                if row and not row.isspace():
                    fields = _parse(row, where)
                    yield Document(
                        document_id=id_of(fields, f"{source}#{number}", where),
                        text=text_of(fields, self._corpus.text_key, where),
                        source=source,
                        label=label_of(fields, self._corpus.label_key, where),
                        official_split=split,
                    )
                advance(len(line))

    def _read_parquet(self, name: PurePosixPath, digest: "_Hash", advance: Advance) -> Iterator[Document]:
        path = self._root / name
        open_regular(path).close()
        digest.update(sha256_of_file(path).encode())
        split = official_split(name)
        for row in parquet_rows(path, where=self._where(name), text_key=self._corpus.text_key, label_key=self._corpus.label_key):
            document_id = row.own_id or f"{name.as_posix()}#{row.index}"
            yield Document(document_id=document_id, text=row.text, source=name.as_posix(), label=row.label, official_split=split)
        advance(path.stat().st_size)

    def _without_mark(self, data: bytes) -> bytes:
        if data.startswith(BYTE_ORDER_MARK):
            self.dropped["num_byte_order_marks"] += 1
            return data[len(BYTE_ORDER_MARK) :]
        return data

    def _where(self, name: PurePosixPath) -> str:
        """The file as the user would name it."""
        return str(Path(self._corpus.root) / name)


def file_states(root: Path, names: list[PurePosixPath]) -> list[list[object]]:
    """Name, size in bytes and time of change of each file: equal states mean unchanged files, as in DVC."""
    stats = [(name.as_posix(), (root / name).stat()) for name in names]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


def _parse(line: bytes, where: str) -> dict[str, Any]:
    """A line's JSON object."""
    try:
        row = json.loads(line.decode())
    except json.JSONDecodeError as error:
        raise ProsemillError(f"{where} is not JSON: {error.msg} at column {error.colno}; mend or remove the line") from None
    except (ValueError, RecursionError) as error:
        raise ProsemillError(f"{where} is not JSON that can be read: {error}; mend or remove the line") from None
    if not isinstance(row, dict):
        raise ProsemillError(f"{where} is {kind_of(row)}, not an object with a text; JSON Lines has one object a line")
    return row
