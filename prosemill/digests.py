"""Digests of files, plain values and folders: what a fingerprint, a manifest row and a split are made of."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

CHUNK = 1 << 20


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal, read in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_value(value: Any) -> str:
    """SHA-256 of a plain value (dicts, lists, numbers, strings) in its canonical JSON form, in hexadecimal."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()


def sha256_of_tree(paths: Iterable[Path]) -> str:
    """SHA-256 over the names and bytes of files and folders, in hexadecimal; compiled Python files are left out."""
    rows = []
    for path in sorted(paths):
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        rows += [[file.as_posix(), sha256_of_file(file)] for file in files if file.is_file() and "__pycache__" not in file.parts]
    return sha256_of_value(rows)


def stable_share(text: str, salt: str) -> float:
    """A number in [0, 1) that depends on the text and the salt alone: the same in every process, on every machine, in every release."""
    digest = hashlib.sha256(f"{salt}\0{text}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
