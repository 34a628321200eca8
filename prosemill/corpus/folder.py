"""Files below a folder, chosen by globs, none of them outside it.

    names = list_files(real_folder("texts", "root"), ("**/*.txt",))

Symbolic links are followed only as far as their real path stays inside; pipes, sockets and devices are refused, so that a corpus folder
from a stranger cannot read the system's files or hang the reader.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from prosemill.errors import ProsemillError


def real_folder(given: str, key: str) -> Path:
    """The real path of a folder that params name. Raises `ProsemillError` if it is no folder."""
    path = Path(given).expanduser()
    if not path.is_dir():
        fault = "is not a folder" if path.exists() else "does not exist"
        raise ProsemillError(f"`download.corpus.{key}`: {path} {fault}; name the folder that holds the files")
    return path.resolve()


def list_files(
    root: Path, patterns: Sequence[str], boundary: Path | None = None, left_out: frozenset[str] = frozenset()
) -> list[PurePosixPath]:
    """Paths, relative to the root and sorted, of the files that match one of the patterns.

    `**` is any number of folders. As in a shell, a wildcard does not match names that begin with a dot. A link to a folder inside the
    root is not entered: its files are found where they are.

    Args:
        root: A real path.
        patterns: Globs relative to the root.
        boundary: Real path of the folder that links may not leave; the root itself by default.
        left_out: Names of folders that are not entered.

    Raises:
        ProsemillError: a pattern leaves the root, a link leads out of it, a name is not UTF-8, or a match is no regular file.
    """
    split_patterns = [_parts_of(pattern) for pattern in patterns]
    names = []
    enter_hidden = any(part.startswith(".") for pattern in split_patterns for part in pattern)
    for name in _walk(root, boundary or root, left_out, enter_hidden=enter_hidden):
        parts = tuple(name.split("/"))
        if any(_matches(parts, pattern) for pattern in split_patterns):
            _refuse_irregular(root / name, boundary or root)
            names.append(name)
    return [PurePosixPath(name) for name in sorted(names)]


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading; never waits for a pipe's other end. Raises `ProsemillError` if it is not a regular file or unreadable."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ProsemillError(f"{path} cannot be read ({error.strerror}): make it readable or leave it out") from None
    file = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise ProsemillError(f"{path} is not a regular file: leave it out")
    return file


def _parts_of(pattern: str) -> tuple[str, ...]:
    parts = PurePosixPath(pattern).parts
    if not parts or pattern.startswith("/") or ".." in parts:
        raise ProsemillError(f"`download.corpus`: the pattern {pattern!r} leaves the root; give globs below the root, such as **/*.txt")
    return parts


def _matches(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return _matches(parts, pattern[1:]) or (bool(parts) and not parts[0].startswith(".") and _matches(parts[1:], pattern))
    if not parts or (parts[0].startswith(".") and not pattern[0].startswith(".")):
        return False
    return fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _walk(root: Path, boundary: Path, left_out: frozenset[str], *, enter_hidden: bool) -> Iterator[str]:
    """Each file's path below the root, with forward slashes. os.walk enters no links; paths are strings, as there may be millions."""
    for folder, folders, files in os.walk(root, onerror=_refuse_unreadable):
        folders[:] = sorted(name for name in folders if name not in left_out and (enter_hidden or not name.startswith(".")))
        for name in folders:
            if Path(folder, name).is_symlink():
                _refuse_escape(Path(folder, name), boundary)
        below = folder.removeprefix(str(root)).replace(os.sep, "/").lstrip("/")
        for name in files:
            relative = f"{below}/{name}" if below else name
            try:
                relative.encode("utf-8")
            except UnicodeEncodeError:
                raise ProsemillError(f"{relative!r} below {root}: the file's name is not UTF-8; rename it") from None
            yield relative


def _refuse_unreadable(error: OSError) -> None:
    raise ProsemillError(f"{error.filename} cannot be read ({error.strerror}): make it readable or leave it out")


def _refuse_irregular(path: Path, boundary: Path) -> None:
    _refuse_escape(path, boundary)
    if not path.exists():
        raise ProsemillError(f"{path} is a link to nothing: remove or mend it")
    if not path.is_file():
        raise ProsemillError(f"{path} is not a regular file (a pipe, socket or device): leave it out")


def _refuse_escape(path: Path, boundary: Path) -> None:
    """Refuse a link whose real path lies outside the boundary."""
    real = Path(os.path.realpath(path))
    if not real.is_relative_to(boundary):
        raise ProsemillError(f"{path} is a link to {real}, outside {boundary}: copy the files in, or name their own folder")
