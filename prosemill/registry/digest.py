"""The digest by which weights are known again, wherever they lie: a registered package's, and a Bento's."""

import os
import shutil
from pathlib import Path

from prosemill.digests import sha256_of_file, sha256_of_value

COMPILED = "__pycache__"


def folder_digest(folder: Path, *, without: Path | None = None) -> str:
    """SHA-256 over the names and bytes of a folder's files, in hexadecimal; a link counts by its name.

    Args:
        folder: The folder.
        without: A file in it that does not count.
    """
    rows = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if name != without and (path.is_symlink() or path.is_file()):
            rows.append([name.as_posix(), "link" if path.is_symlink() else sha256_of_file(path)])
    return sha256_of_value(rows)


def remove_compiled(folder: Path) -> None:
    """Remove what Python has left of the modules that it loaded: it would run that again, whatever it holds by then."""
    for root, names, _ in os.walk(folder):
        if COMPILED in names:
            shutil.rmtree(Path(root) / COMPILED, ignore_errors=True)
