"""Kills of a build: the states of the disk in which one may leave it, and a process that is killed at a point.

A point is a call of fsync, replace, link, unlink or rmtree: between two of them nothing changes but a file that is being written. The
disk is not really synced, which is slow: a killed process loses nothing that it has written.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from prosemill.digests import sha256_of_file
from prosemill.params import Download
from prosemill.workspace import CORPUS, SHARD_WORK
from tests.corpus.corpora import download, files

POINTS = ((os, "fsync"), (os, "replace"), (os, "link"), (os, "unlink"), (shutil, "rmtree"))


def killed_section() -> Download:
    """One unit, and something for every step to find."""
    corpus = files("texts", max_documents=31)
    return download(corpus, num_shards=1, test_share=0.3, near_duplicate_threshold=0.8, contamination_words=5)


def leftovers() -> list[Path]:
    """What a finished build must have deleted."""
    return [path for kind in ("read", "check", "unpacked", "corpus") for path in SHARD_WORK.glob(f"{kind}-*")]


def no_sync(fd: object) -> None:
    """Stands for `os.fsync`."""


def arm(kill_at: int, points: Iterable[tuple[Any, str]] = POINTS) -> None:
    """Have this process killed just before its `kill_at`-th call of one of the functions, given as their owners and names."""
    count = 0

    def armed(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **keywords: Any) -> Any:
            nonlocal count
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **keywords)

        return wrapper

    for owner, name in points:
        setattr(owner, name, armed(getattr(owner, name)))


def states_of(work: Callable[[], object], folder: Path) -> list[Path]:
    """Do the work once; copies of the corpus and of unfinished work as they were just before each point, no two of them alike."""
    kept: dict[tuple[tuple[str, int, str], ...], Path] = {}

    def keep() -> None:
        roots = [Path(path.parts[0]) for path in (CORPUS, SHARD_WORK) if path.exists()]
        content = tuple(describe(path) for root in roots for path in sorted(root.rglob("*")))
        if not content or content in kept:
            return
        kept[content] = folder / f"{len(kept):03d}"
        kept[content].mkdir()
        # Hard links among the files stay hard links.
        subprocess.run(["cp", "--archive", *roots, kept[content]], check=True)

    def kept_before(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **keywords: Any) -> Any:
            keep()
            return call(*arguments, **keywords)

        return wrapper

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in POINTS:
            patch.setattr(owner, name, kept_before(getattr(owner, name)))
        work()

    return list(kept.values())


def describe(path: Path) -> tuple[str, int, str]:
    """Path, number of hard links and digest of a file; a folder has no digest."""
    if path.is_dir():
        return str(path), 0, ""
    return str(path), path.stat().st_nlink, sha256_of_file(path)


def restore(state: Path) -> None:
    """Give the current folder the corpus and the unfinished work of such a state."""
    for path in (CORPUS, SHARD_WORK):
        shutil.rmtree(path.parts[0], ignore_errors=True)
    subprocess.run(["cp", "--archive", f"{state}/.", "."], check=True)
