"""The source code of the running Python's standard library: real text on every machine, with no network.

    source = PythonSource(PythonSourceCorpus(source="python-source"))

A module is a document, its path below the library's folder its id. Tests and installed packages are left out.
"""

import platform
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from prosemill.corpus.document import Document, has_text
from prosemill.corpus.files import file_states
from prosemill.corpus.folder import list_files, open_regular
from prosemill.params import PythonSourceCorpus

LEFT_OUT = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})


class PythonSource:
    """The modules of the standard library, in the order of their paths."""

    def __init__(self, _: PythonSourceCorpus, root: Path | None = None) -> None:
        self._root = (root or Path(sysconfig.get_path("stdlib"))).resolve()
        # Some systems link a module from elsewhere (sitecustomize.py from /etc): the library is trusted, such files are not of it.
        names = list_files(self._root, ("**/*.py",), boundary=Path("/"), left_out=LEFT_OUT)
        self._names = [name for name in names if not (self._root / name).is_symlink()]
        self.dropped: Counter[str] = Counter(num_not_utf8=0)
        self.num_bytes = sum((self._root / name).stat().st_size for name in self._names)

    def state(self) -> object:
        """Names, sizes and times of change of the modules."""
        return file_states(self._root, self._names)

    def documents(self, advance: Callable[[int], object]) -> Iterator[Document]:
        """Every module; the few that the library keeps in other encodings on purpose are dropped and counted."""
        for name in self._names:
            with open_regular(self._root / name) as file:
                text = file.read()
            advance(len(text))
            try:
                has_text(text)
            except UnicodeDecodeError:
                self.dropped["num_not_utf8"] += 1
                continue
            yield Document(document_id=name.as_posix(), text=text, source="python-source", label=_package(name))

    def facts(self) -> dict[str, Any]:
        """The Python version and its licence."""
        return {
            "source": "python-source",
            "python_version": platform.python_version(),
            "num_files": len(self._names),
            "license": "PSF-2.0",
            "attribution": f"Python Software Foundation, the standard library of Python {platform.python_version()}",
        }


def _package(name: PurePosixPath) -> str:
    """The top-level module that a file belongs to."""
    return name.parts[0].removesuffix(".py")
