"""Flat token files: which type their ids have, and how they are opened without reading them into memory.

tokens = open_tokens(TOKENS / "train/shard-00000.bin", row)  # a memory-mapped array of uint16 or uint32
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prosemill.digests import sha256_of_file
from prosemill.errors import ProsemillError
from prosemill.shards import MANIFEST, Row, read_manifest, rows_of_split

DTYPES: Mapping[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


def dtype_of(vocabulary_size: int) -> str:
    """Name of the narrowest type that holds every id of the vocabulary."""
    return "uint16" if vocabulary_size <= 1 << 16 else "uint32"


def rows_with(folder: Path, split: str, facts: Sequence[str]) -> list[Row]:
    """The manifest's rows of a split, in order.

    Raises:
        ProsemillError: the manifest is missing or broken, has no file of the split, or lacks one of the facts.
    """
    rows = rows_of_split(read_manifest(folder), split)
    if not rows:
        raise ProsemillError(f"{folder / MANIFEST} has no file of the split {split}: delete the folder and run `dvc repro`")
    for row in rows:
        missing = [fact for fact in ("file", "sha256", "num_bytes", *facts) if fact not in row]
        if missing:
            raise ProsemillError(f"{folder / MANIFEST} lacks {missing[0]} of {row.get('file')}: delete the folder and run `dvc repro`")
    return rows


def check_row(folder: Path, row: Row, first: Row, same: Sequence[str]) -> None:
    """Raise `ProsemillError` if a token file's facts contradict each other, or differ from the split's first file where they must not."""
    dtype = DTYPES.get(row["dtype"])
    if dtype is None or row["num_bytes"] != row["num_tokens"] * dtype.itemsize or any(row[fact] != first[fact] for fact in same):
        raise ProsemillError(f"{folder / MANIFEST} contradicts itself at {row['file']}: delete the folder and run `dvc repro`")


def check_size(folder: Path, row: Row) -> Path:
    """Path of a manifest row's file. Raises `ProsemillError` if the file is missing or its size is not the manifest's."""
    path = folder / str(row["file"])
    found = path.stat().st_size if path.is_file() else None
    if found != row["num_bytes"]:
        state = "is missing" if found is None else f"has {found:,} bytes where {MANIFEST} says {row['num_bytes']:,}"
        raise ProsemillError(f"{path} {state}: delete {folder} and run `dvc repro` to make it again")
    return path


def check_digest(path: Path, sha256: str) -> None:
    """Raise `ProsemillError` if the file's bytes are not those of its manifest."""
    if sha256_of_file(path) != sha256:
        raise ProsemillError(f"{path} is damaged (its SHA-256 is not the manifest's): delete {path.parent.parent} and run `dvc repro`")


def open_tokens(path: Path, dtype: str) -> np.ndarray[Any, np.dtype[Any]]:
    """The ids of a token file, memory-mapped and read-only: an array of shape [tokens]."""
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.empty(0, DTYPES[dtype])
    return np.memmap(path, DTYPES[dtype], mode="r")


def read_tokens(folder: Path, split: str, limit: int) -> np.ndarray[Any, np.dtype[Any]]:
    """The first tokens of a split's stream, in memory.

    Args:
        folder: Folder that `tokenize_corpus` wrote.
        split: train, validation or test.
        limit: Tokens to read, at most.

    Raises:
        ProsemillError: the folder, the split or a file is missing, or a file's size contradicts the manifest.
    """
    parts: list[np.ndarray[Any, np.dtype[Any]]] = []
    for row in rows_with(folder, split, ("dtype",)):
        parts.append(open_tokens(check_size(folder, row), row["dtype"])[:limit])
        limit -= len(parts[-1])
    return np.concatenate(parts)
