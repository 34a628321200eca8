"""The intermediate format on disk between the passes: a line of JSON, then the text's bytes.

    file.writelines(frame(["a.txt", None], b"Hello"))
    for header, offset, size in frame_headers(file): ...

The text is never escaped or parsed, and a reader that wants the headers alone skips it.
"""

import json
from collections.abc import Iterator
from typing import Any, BinaryIO


def frame(header: list[Any], text: bytes) -> tuple[bytes, bytes, bytes]:
    """The pieces of one record, to be written one after the other. The header is any JSON array."""
    return json.dumps([len(text), *header]).encode() + b"\n", text, b"\n"


def frame_headers(file: BinaryIO, stop: int | None = None) -> Iterator[tuple[list[Any], int, int]]:
    """Each record's header with the offset and size of its text, from the file's position up to `stop`, where a record ends, or to its end.

    The consumer may move the file's position in between.
    """
    while file.tell() != stop and (line := file.readline()):
        size, *header = json.loads(line)
        offset = file.tell()
        yield header, offset, size
        file.seek(offset + size + 1)


def frame_text(file: BinaryIO, offset: int, size: int) -> bytes:
    """The text at an offset that `frame_headers` told."""
    file.seek(offset)
    text = file.read(size)
    assert len(text) == size, f"{file.name} is cut short"
    return text
