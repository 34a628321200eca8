"""Builds a corpus in the current folder again and again, each time killed at the next point where it touches the disk's order.

    python -m tests.corpus.killing EXPECTED

A point is a call of fsync, replace, link, unlink or rmtree. After each kill the build is run again, and its bytes must be those of
EXPECTED, a JSON file of digests. Prints the number of points. A process of its own, as it forks: a test process may hold threads. The
disk is not really synced, which is slow: a killed process loses nothing that it has written.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow

from prosemill.corpus import build_corpus
from prosemill.corpus.near_duplicates import signature
from prosemill.params import Download
from prosemill.workspace import CORPUS, SHARD_WORK
from tests.corpus.corpora import download, files, tree_digests

POINTS = ((os, "fsync"), (os, "replace"), (os, "link"), (os, "unlink"), (shutil, "rmtree"))


def killed_section() -> Download:
    """One unit, and something for every step to find."""
    corpus = files("texts", max_documents=31)
    return download(corpus, num_shards=1, test_share=0.3, near_duplicate_threshold=0.8, contamination_words=5)


def leftovers() -> list[Path]:
    """What a finished build must have deleted."""
    return [path for kind in ("read", "check", "unpacked", "corpus") for path in SHARD_WORK.glob(f"{kind}-*")]


def build(kill_at: int | None) -> bool:
    """Build in a forked child that is killed just before its `kill_at`-th point; whether it came to its end."""
    child = os.fork()
    if child == 0:
        os.fsync = no_sync
        if kill_at is not None:
            arm(kill_at)
        build_corpus(killed_section(), CORPUS)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return not os.WIFSIGNALED(status)


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


def main() -> None:
    pyarrow.array([""])  # imports what each child would import again
    signature(b"")
    expected = json.loads(Path(sys.argv[1]).read_text())
    point = 1
    while not build(point):
        assert build(None), point
        assert tree_digests(CORPUS) == expected, point
        assert leftovers() == [], point
        for folder in (CORPUS, SHARD_WORK):
            shutil.rmtree(folder)
        point += 1
    sys.stdout.write(str(point - 1))


if __name__ == "__main__":
    main()
