"""What is evaluated on: the documents of a split, and the passages of them that the models continue.

documents, data = read_split(CORPUS, "test", max_documents=None)
passages, num_too_short = choose_passages(documents, num_prompts=48, prompt_words=32, continuation_words=32)
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prosemill.digests import sha256_of_value
from prosemill.errors import ProsemillError
from prosemill.shards import read_manifest, rows_of_split
from prosemill.wikitext import detokenize


@dataclass(frozen=True)
class Document:
    """One document of the evaluated split."""

    document_id: str
    text: str
    """What is scored."""
    original: str | None = None
    """The corpus's own text, where another is scored."""

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of the text."""
        return len(self.text.encode("utf-8"))

    @property
    def num_words(self) -> int:
        """Whitespace-separated words of the original text."""
        return len((self.text if self.original is None else self.original).split())


@dataclass(frozen=True)
class Passage:
    """A document's beginning, which a model continues, and the human's own continuation of the same length as the model's."""

    document_id: str
    prompt: str
    reference: str


def read_split(corpus: Path, split: str, max_documents: int | None, *, detokenized: bool = False) -> tuple[list[Document], dict[str, Any]]:
    """The first documents of a split, in the corpus's order, and the facts that name the data.

    Args:
        corpus: The corpus folder.
        split: train, validation or test.
        max_documents: How many; None for all.
        detokenized: Whether WikiText's tokenisation is undone before scoring.

    Returns:
        The documents, and `split`, `digest` (of the split's files, whatever `max_documents` is), `num_documents`, `num_documents_in_split`.

    Raises:
        ProsemillError: the folder, its manifest or a file is missing or broken, or the split has no text.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = rows_of_split(read_manifest(corpus), split)
    documents: list[Document] = []
    for row in rows:
        path = corpus / row["file"]
        try:
            table = pq.read_table(path, columns=["document_id", "text"])
        except FileNotFoundError:
            raise ProsemillError(f"{path} is missing: run `dvc repro download` to make it") from None
        except (pa.ArrowException, OSError) as error:
            raise ProsemillError(f"{path} is not a readable Parquet file ({error}): run `dvc repro -f download` to make it again") from None
        columns = table.to_pydict()
        documents += [_document(*pair, detokenized) for pair in zip(columns["document_id"], columns["text"], strict=True)]
    num_in_split = len(documents)
    documents = documents[:max_documents]
    if not any(document.text for document in documents):
        raise ProsemillError(
            f"the {split} split of {corpus} has no text: raise `download.{split}_share` in params.yaml or use a larger corpus"
        )
    digest = sha256_of_value([[row["file"], row["sha256"]] for row in rows])
    return documents, {"split": split, "digest": digest, "num_documents": len(documents), "num_documents_in_split": num_in_split}


def _document(document_id: str, text: str, detokenized: bool) -> Document:
    return Document(document_id, detokenize(text), original=text) if detokenized else Document(document_id, text)


def choose_passages(
    documents: Sequence[Document], *, num_prompts: int, prompt_words: int, continuation_words: int
) -> tuple[list[Passage], int]:
    """The passages of the first `num_prompts` documents that are long enough (fewer where there are not so many).

    Returns:
        The passages, in the documents' order, and how many of all documents are too short for one.

    Raises:
        ProsemillError: no document is long enough.
    """
    found = [_passage(document, prompt_words, continuation_words) for document in documents]
    passages = [passage for passage in found if passage is not None]
    if not passages:
        raise ProsemillError(
            f"no document of the split has the {prompt_words + continuation_words} words that a prompt and its continuation need: "
            "lower `evaluate.prompt_words` or `evaluate.continuation_words` in params.yaml"
        )
    return passages[:num_prompts], len(found) - len(passages)


def _passage(document: Document, prompt_words: int, continuation_words: int) -> Passage | None:
    ends = [match.end() for match in re.finditer(r"\S+", document.text)]
    if len(ends) < prompt_words + continuation_words:
        return None
    cut, end = ends[prompt_words - 1], ends[prompt_words + continuation_words - 1]
    return Passage(document.document_id, document.text[:cut], document.text[cut:end].strip())


def read_source(folder: Path) -> dict[str, str]:
    """SOURCE.json of a downloaded folder: where it is from, its licence and whom to credit. Raises `ProsemillError` without it."""
    path = folder / "SOURCE.json"
    try:
        content: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ProsemillError(f"{path} is missing: run `dvc repro download` to make it") from None
    except ValueError as error:
        raise ProsemillError(f"{path} is not JSON ({error}): run `dvc repro -f download` to make it again") from None
    return content
