"""The source code of the running Python's standard library: real text on every machine, with no network.

    source = PythonSource(PythonSourceCorpus(source="python-source"))

A module is a document, its path below the library's folder its id. Tests and installed packages are left out.
"""

import platform
import sysconfig
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from prosemill.corpus.document import Document, Unit, has_text
from prosemill.corpus.folder import list_files, open_regular
from prosemill.corpus.pieces import Piece, join_pieces, whole_file
from prosemill.params import PythonSourceCorpus

LEFT_OUT = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})


class PythonSource:
    """The modules of the standard library, in the order of their paths."""

    def __init__(self, _: PythonSourceCorpus, root: Path | None = None) -> None:
        self._root = (root or Path(sysconfig.get_path("stdlib"))).resolve()
        # Some systems link a module from elsewhere (sitecustomize.py from /etc): the library is trusted, such files are not of it.
        names = list_files(self._root, ("**/*.py",), boundary=Path("/"), left_out=LEFT_OUT)
        self._names = [name for name in names if not (self._root / name).is_symlink()]

    def units(self) -> Sequence[Unit]:
        """Modules, joined."""
        return [PythonUnit(self._root, joined) for joined in join_pieces(whole_file(self._root, name) for name in self._names)]

    def facts(self, documents_sha256: str) -> dict[str, Any]:
        """The Python version, the digest of all documents, and the licence."""
        return {
            "source": "python-source",
            "python_version": platform.python_version(),
            "sha256": documents_sha256,
            "num_files": len(self._names),
            "license": "PSF-2.0",
            "attribution": f"Python Software Foundation, the standard library of Python {platform.python_version()}",
        }


@dataclass(frozen=True)
class PythonUnit:
    """Some modules."""

    root: Path
    pieces: tuple[Piece, ...]

    def state(self) -> object:
        """Names, sizes and times of change of the modules."""
        return [piece.state() for piece in self.pieces]

    def documents(self, dropped: Counter[str]) -> Iterator[Document]:
        """Every module; the few that the library keeps in other encodings on purpose are dropped and counted."""
        dropped["num_not_utf8"] += 0
        for piece in self.pieces:
            with open_regular(self.root / piece.name) as file:
                text = file.read()
            try:
                has_text(text)
            except UnicodeDecodeError:
                dropped["num_not_utf8"] += 1
                continue
            yield Document(document_id=piece.name.as_posix(), text=text, source="python-source", label=_package(piece.name))


def _package(name: PurePosixPath) -> str:
    """The top-level module that a file belongs to."""
    return name.parts[0].removesuffix(".py")
