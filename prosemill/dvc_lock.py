"""What dvc.lock says of the pipeline's last run, and DVC's digests of files and folders.

    lock = DvcLock.read(LOCK)
    lock.outs["models/trained"], lock.params["train"]

DVC names what a stage read and wrote by MD5; a folder's is the MD5 of the list of its files (DVC 3, `dvc_data.hashfile.tree`).
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from prosemill.errors import ProsemillError

DIGEST_OF_FOLDER = ".dir"  # what DVC puts behind it


@dataclass(frozen=True)
class DvcLock:
    """The content of a dvc.lock."""

    deps: dict[str, dict[str, str]]
    """By stage, the digest of every path that it read."""
    outs: dict[str, str]
    """Digest of every path that a stage wrote."""
    params: dict[str, Any]
    """Sections of params.yaml, as the stages read them."""

    @classmethod
    def read(cls, path: Path) -> "DvcLock":
        """Read a file. Raises `ProsemillError` if it is missing, broken, or of a pipeline that has not run."""
        try:
            return cls.parse(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ProsemillError(f"{path} is missing: run `make run` or `dvc repro` first") from None
        except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ProsemillError(f"{path} is broken ({type(error).__name__}): run `dvc repro` to make it again") from None

    @classmethod
    def parse(cls, text: str) -> "DvcLock":
        """Read its text."""
        stages = yaml.safe_load(text)["stages"]
        return cls(
            deps={name: {dep["path"]: dep["md5"] for dep in stage["deps"]} for name, stage in stages.items()},
            outs={out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]},
            params={name: section for stage in stages.values() for name, section in stage["params"]["params.yaml"].items()},
        )


def digest_of(path: Path) -> str | None:
    """DVC's digest of a file or folder; None where nothing is."""
    if path.is_dir():
        return digest_of_listing((file.relative_to(path).as_posix(), _md5(file)) for file in path.rglob("*") if file.is_file())
    return _md5(path) if path.is_file() else None


def digest_of_listing(files: Iterable[tuple[str, str]]) -> str:
    """DVC's digest of a folder by the paths below it, with `/`, and the MD5s of its files."""
    listing = json.dumps([{"md5": md5, "relpath": name} for name, md5 in sorted(files)])
    return hashlib.md5(listing.encode(), usedforsecurity=False).hexdigest() + DIGEST_OF_FOLDER


def is_in_cache(digest: str, cache: Path, *, thorough: bool = False) -> bool:
    """Whether DVC's cache holds a file, or a folder's list and every file on it; `thorough`: and these have the digests that name them."""
    if not digest.endswith(DIGEST_OF_FOLDER):
        return _is_object(digest, cache, thorough=thorough)
    listing = cache / digest[:2] / digest[2:]
    if not listing.is_file() or _md5(listing) + DIGEST_OF_FOLDER != digest:
        return False
    return all(_is_object(file["md5"], cache, thorough=thorough) for file in json.loads(listing.read_bytes()))


def _is_object(md5: str, cache: Path, *, thorough: bool) -> bool:
    path = cache / md5[:2] / md5[2:]
    return path.is_file() and (not thorough or _md5(path) == md5)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
