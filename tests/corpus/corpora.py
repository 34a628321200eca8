"""Small corpora for tests: made from texts, built, and read back.

write_texts(Path("texts"), {"a.txt": "Hello"})
metrics = build_corpus(download(files("texts")), CORPUS)
assert read_corpus(CORPUS)["a.txt"].text == "Hello"
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet

from prosemill.params import Corpus, Download, FilesCorpus, ScratchModel
from prosemill.workspace import SHARD_WORK, SPLITS


@dataclass(frozen=True)
class Built:
    """A document of a built corpus, with the split and the file that hold it."""

    text: str
    source: str
    label: str | None
    split: str
    file: str


def files(root: str = "texts", **settings: Any) -> FilesCorpus:
    return FilesCorpus(source="files", name="texts", root=root, **settings)


def download(
    corpus: Corpus,
    *,
    num_shards: int = 2,
    near_duplicate_threshold: float | None = None,
    contamination_words: int | None = None,
    **settings: Any,
) -> Download:
    """A section that keeps what is alike, as the texts of tests often are; those about likeness set the two keys."""
    return Download(
        corpus=corpus,
        model=ScratchModel(source="scratch", name="tiny"),
        num_shards=num_shards,
        near_duplicate_threshold=near_duplicate_threshold,
        contamination_words=contamination_words,
        **settings,
    )


def write_texts(root: Path, texts: dict[str, str | bytes]) -> None:
    for name, text in texts.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())


def write_parquet(path: Path, columns: dict[str, Any], **settings: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path, **settings)


def read_corpus(output: Path) -> dict[str, Built]:
    """All documents by id; a document that is there twice is an error."""
    found: dict[str, Built] = {}
    for split in SPLITS:
        for path in sorted((output / split).glob("*.parquet")):
            for row in pyarrow.parquet.read_table(path).to_pylist():
                assert row["document_id"] not in found, row["document_id"]
                found[row["document_id"]] = Built(row["text"], row["source"], row["label"], split, path.name)
    return found


def tree_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file's bytes, by path."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def finished(pattern: str, number: int) -> dict[str, list[int]]:
    """Times at which the sidecars were written of each piece of work, named by its files' stem, all of whose sidecars are there."""
    times: dict[str, list[int]] = {}
    for path in SHARD_WORK.glob(pattern):
        times.setdefault(path.name.partition(".")[0], []).append(path.stat().st_mtime_ns)
    return {name: sorted(written) for name, written in times.items() if len(written) == number}
