"""The user's own files: plain text and Markdown (a file is a document), JSON Lines and Parquet (a row is a document).

    source = FilesSource(FilesCorpus(source="files", root="texts"))

Ids: a file's path below the root; a row's own `document_id` or `id`, else the path with `#` and the line (from 1) or Parquet row (from 0).
In WikiText's format an article is a document. Text is kept byte for byte; only a byte-order mark at a file's start is dropped, and counted.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

from prosemill.corpus.document import BYTE_ORDER_MARK, MAX_DOCUMENT_BYTES, Document, Unit, refuse_long, refuse_wrong_bytes
from prosemill.corpus.folder import list_files, open_regular, real_folder
from prosemill.corpus.parquet import Part, parquet_rows
from prosemill.corpus.pieces import JSON_LINES, PARQUET, Piece, join_pieces, pieces_of, whole_pieces
from prosemill.corpus.rows import id_of, kind_of, label_of, text_of
from prosemill.corpus.splits import official_split
from prosemill.errors import ProsemillError
from prosemill.params import FilesCorpus
from prosemill.wikitext import articles


class FilesSource:
    """The files below `root` that match the patterns, in the order of their paths."""

    def __init__(self, corpus: FilesCorpus) -> None:
        self._corpus = corpus
        self._root = real_folder(corpus.root, "root")
        self._names = list_files(self._root, corpus.patterns)
        if not self._names:
            patterns = ", ".join(corpus.patterns) or "the empty list of patterns"
            raise ProsemillError(f"`download.corpus.patterns`: no file below {corpus.root} matches {patterns}; correct root or patterns")

    def units(self) -> Sequence[Unit]:
        """Parts of large files, and small files joined."""
        cut = whole_pieces if self._corpus.format == "wikitext" else pieces_of
        pieces = (piece for name in self._names for piece in cut(self._root, name, _where(self._corpus, name)))
        return [FilesUnit(self._corpus, self._root, joined) for joined in join_pieces(pieces)]

    def facts(self, documents_sha256: str) -> dict[str, Any]:
        """The digest of all documents, and the licence that params give."""
        return {
            "source": "files",
            "patterns": list(self._corpus.patterns),
            "num_files": len(self._names),
            "sha256": documents_sha256,
            "license": self._corpus.license,
            "attribution": self._corpus.attribution,
        }


@dataclass(frozen=True)
class FilesUnit:
    """Some files, or a part of one."""

    corpus: FilesCorpus
    root: Path
    pieces: tuple[Piece, ...]

    def state(self) -> object:
        """Names, sizes and times of change of the files, and the part."""
        return [piece.state() for piece in self.pieces]

    def documents(self, dropped: Counter[str]) -> Iterator[Document]:
        """Every piece's documents."""
        dropped["num_byte_order_marks"] += 0
        for piece in self.pieces:
            suffix = piece.name.suffix.lower()
            if suffix in PARQUET:
                yield from self._read_parquet(piece)
            elif suffix in JSON_LINES and self.corpus.format == "wikitext":
                where = _where(self.corpus, piece.name)
                raise ProsemillError(f"{where} is JSON Lines, whose rows are documents: set `download.corpus.format` to plain")
            elif suffix in JSON_LINES:
                yield from self._read_json_lines(piece, dropped)
            elif suffix == ".json":
                where = _where(self.corpus, piece.name)
                raise ProsemillError(f"{where} is JSON, which is not read: save it as JSON Lines (.jsonl), one object a line")
            elif self.corpus.format == "wikitext":
                yield from self._read_articles(piece, dropped)
            else:
                yield self._read_text(piece, dropped)

    def _read_text(self, piece: Piece, dropped: Counter[str]) -> Document:
        where, name = _where(self.corpus, piece.name), piece.name
        with open_regular(self.root / name) as file:
            data = file.read(MAX_DOCUMENT_BYTES + 1)
        refuse_long(len(data), where)
        refuse_wrong_bytes(data, where)
        text = _without_mark(data, dropped)
        return Document(document_id=name.as_posix(), text=text, source=name.as_posix(), official_split=official_split(name))

    def _read_articles(self, piece: Piece, dropped: Counter[str]) -> Iterator[Document]:
        where, name = _where(self.corpus, piece.name), piece.name.as_posix()
        with open_regular(self.root / piece.name) as file:
            first = _without_mark(file.readline(MAX_DOCUMENT_BYTES + 1), dropped)
            lines = iter(partial(file.readline, MAX_DOCUMENT_BYTES + 1), b"")
            yield from articles_as_documents(chain([first], lines), name=name, split=official_split(piece.name), where=where)

    def _read_json_lines(self, piece: Piece, dropped: Counter[str]) -> Iterator[Document]:
        file_name, source, split = _where(self.corpus, piece.name), piece.name.as_posix(), official_split(piece.name)
        offset, number = piece.start, piece.first_row
        with open_regular(self.root / piece.name) as file:
            file.seek(offset)
            while offset != piece.stop and (line := file.readline(MAX_DOCUMENT_BYTES + 1)):
                number += 1
                where = f"{file_name} line {number}"
                refuse_long(len(line), where)
                refuse_wrong_bytes(line, file_name, offset)
                row = _without_mark(line, dropped) if offset == 0 else line
                offset += len(line)
                if row and not row.isspace():
                    fields = _parse(row, where)
                    yield Document(
                        document_id=id_of(fields, f"{source}#{number}", where),
                        text=text_of(fields, self.corpus.text_key, where),
                        source=source,
                        label=label_of(fields, self.corpus.label_key, where),
                        official_split=split,
                    )

    def _read_parquet(self, piece: Piece) -> Iterator[Document]:
        path, name = self.root / piece.name, piece.name
        open_regular(path).close()
        split = official_split(name)
        corpus, where = self.corpus, _where(self.corpus, name)
        rows = parquet_rows(path, where=where, text_key=corpus.text_key, label_key=corpus.label_key, part=part_of(piece))
        if corpus.format == "wikitext":
            yield from articles_as_documents((row.text for row in rows), name=name.as_posix(), split=split, where=where)
            return
        for row in rows:
            document_id = row.own_id or f"{name.as_posix()}#{row.index}"
            yield Document(document_id=document_id, text=row.text, source=name.as_posix(), label=row.label, official_split=split)


def articles_as_documents(lines: Iterable[bytes], *, name: str, split: str | None, where: str) -> Iterator[Document]:
    """WikiText's articles: the title is the label, and the id the file's name with `#` and the article's number (from 0).

    Raises:
        ProsemillError: an article is not UTF-8, or longer than a document may be.
    """
    offset = 0
    for number, (title, text) in enumerate(articles(lines, partial(refuse_long, where=f"{where}, an article"))):
        refuse_wrong_bytes(text, where, offset)
        offset += len(text)
        yield Document(document_id=f"{name}#{number}", text=text, source=name, label=title or None, official_split=split)


def part_of(piece: Piece) -> Part | None:
    """The row groups that a piece of a Parquet file means; None for a whole file."""
    return None if piece.stop is None else Part(piece.start, piece.stop, piece.first_row, piece.num_bytes)


def _without_mark(data: bytes, dropped: Counter[str]) -> bytes:
    if data.startswith(BYTE_ORDER_MARK):
        dropped["num_byte_order_marks"] += 1
        return data[len(BYTE_ORDER_MARK) :]
    return data


def _where(corpus: FilesCorpus, name: PurePosixPath) -> str:
    """The file as the user would name it."""
    return str(Path(corpus.root) / name)


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
