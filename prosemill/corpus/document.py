"""What a source yields, and what text must be: valid UTF-8, kept byte for byte.

document = Document(document_id="notes/a.txt", text=b"Hello", source="notes/a.txt")
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from prosemill.errors import ProsemillError

MAX_DOCUMENT_BYTES = 1 << 30
"""Longest document in bytes: Parquet and Arrow count a value's bytes in 31 bits."""

CHECK_BYTES = 1 << 20  # validated at a time: a text is never held as bytes and as characters both

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One text of the corpus."""

    document_id: str
    """Unique in the corpus, and the same whenever the source is read."""
    text: bytes
    """Valid UTF-8."""
    source: str
    """Where it comes from: a file below the root, or a package."""
    label: str | None = None
    """What the source says of it, such as a topic."""
    official_split: str | None = None
    """The split (one of `workspace.SPLITS`) that the source puts it in, if any."""


class Unit(Protocol):
    """A part of a source that one worker reads at a time, about `pieces.UNIT_BYTES` of it. Must pickle."""

    def state(self) -> object:
        """A plain value that changes whenever the documents may have changed."""
        ...

    def documents(self, dropped: Counter[str]) -> Iterator[Document]:
        """Read the unit once, in its order and in constant memory; count in `dropped`, by metric name, what is left out."""
        ...


class Source(Protocol):
    """Where documents come from. Making one lists what it will read, and refuses what it may not."""

    def units(self) -> Sequence[Unit]:
        """All units, in the source's order. Their borders depend on the source alone."""
        ...

    def facts(self, documents_sha256: str) -> dict[str, Any]:
        """What SOURCE.json says of the source, given the digest of all its documents as they were read."""
        ...


def has_text(data: bytes) -> bool:
    """Whether UTF-8 bytes hold anything beside white space.

    Raises:
        UnicodeDecodeError: the bytes are not UTF-8; `start` is the offset of the first wrong byte.
    """
    found, start = False, 0
    while start < len(data):
        end = character_border(data, start + CHECK_BYTES)
        try:
            found = not data[start:end].decode("utf-8").isspace() or found
        except UnicodeDecodeError as error:
            raise UnicodeDecodeError("utf-8", data[:0], start + error.start, start + error.end, error.reason) from None
        start = end
    return found


def refuse_wrong_bytes(data: bytes, where: str, offset: int = 0) -> None:
    """Raise `ProsemillError` naming the file and the byte offset if the bytes are not UTF-8.

    Args:
        data: The bytes.
        where: The file's name for the message.
        offset: Bytes of the file that come before these.
    """
    try:
        has_text(data)
    except UnicodeDecodeError as error:
        is_utf16 = offset == 0 and data[:2] in (b"\xff\xfe", b"\xfe\xff")
        guess = "it looks like UTF-16: convert it" if is_utf16 else "convert it (for example"
        remedy = "with `iconv -f UTF-16 -t UTF-8`" if is_utf16 else "with `iconv -f LATIN1 -t UTF-8`) or leave it out"
        raise ProsemillError(f"{where} is not UTF-8 at byte {offset + error.start} ({error.reason}); {guess} {remedy}") from None


def encode(text: str, where: str) -> bytes:
    """A string's UTF-8 bytes. Raises `ProsemillError` for a lone surrogate, which a JSON escape can name but no UTF-8 can hold."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = f"\\u{ord(text[error.start]):04x}"
        raise ProsemillError(f"{where}: character {error.start} is the lone surrogate {code}, which is no text; replace it") from None


def refuse_long(num_bytes: int, where: str) -> None:
    """Raise `ProsemillError` if a document is longer than one may be."""
    if num_bytes > MAX_DOCUMENT_BYTES:
        raise ProsemillError(f"{where} has more than {MAX_DOCUMENT_BYTES >> 20} MiB, too many for one document; cut it into several")


def character_border(data: bytes, position: int) -> int:
    """The last border between two characters at or before the position; the position itself where there is none nearby."""
    if position >= len(data):
        return len(data)
    for border in range(position, position - 4, -1):
        if data[border] & 0xC0 != 0x80:
            return border
    return position
