"""A build that is killed at any point costs no finished work and leaves nothing half-written."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prosemill.corpus import build, build_corpus, pieces
from prosemill.corpus.units import KINDS, Store
from prosemill.workspace import CORPUS, SHARD_WORK, SPLITS
from tests.corpus import killing
from tests.corpus.corpora import download, files, tree_digests, write_texts
from tests.waiting import LIMIT

REPOSITORY = Path(__file__).parents[2]


def test_a_kill_at_any_point_of_the_disks_order_costs_nothing(workspace: Path) -> None:
    write_texts(workspace / "texts", {f"{index}.txt": f"text {index % 25}" for index in range(30)})
    alike: dict[str, str | bytes] = {"near.txt": "Text 7!", "train/holds.txt": "It says: a b c d e f.", "test/held.txt": "a b c d e"}
    write_texts(workspace / "texts", alike)
    metrics = build_corpus(killing.killed_section(), CORPUS)
    assert metrics["num_near_duplicates"] == metrics["num_contaminated"] == 1
    expected = workspace / "expected.json"
    expected.write_text(json.dumps(tree_digests(CORPUS)))
    command = [sys.executable, "-m", "tests.corpus.killing", str(expected)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 30


BUILD = """
from prosemill.corpus import build_corpus, pieces
from tests.corpus import killing
from tests.corpus.corpora import download, files
from prosemill.workspace import CORPUS
pieces.UNIT_BYTES = 100
if __name__ == "__main__":
    build_corpus(download(files(), num_shards=40), CORPUS)
"""


def finished(pattern: str, number: int) -> dict[str, list[int]]:
    """Times at which the sidecars were written of each piece of work, named by its files' stem, all of whose sidecars are there."""
    times: dict[str, list[int]] = {}
    for path in SHARD_WORK.glob(pattern):
        times.setdefault(path.name.partition(".")[0], []).append(path.stat().st_mtime_ns)
    return {name: sorted(written) for name, written in times.items() if len(written) == number}


@pytest.mark.parametrize(
    ("pattern", "number"), [("read-*/*.json", len(KINDS)), ("download-*/*/*.parquet.json", len(SPLITS))], ids=["reading", "writing"]
)
def test_a_kill_in_the_midst_of_parallel_work_keeps_what_is_finished(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, number: int
) -> None:
    write_texts(workspace / "texts", {f"{index}.txt": f"text {index}" for index in range(300)})
    (workspace / "main.py").write_text(BUILD)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PROSEMILL_WORKERS": "2"}
    with subprocess.Popen([sys.executable, "main.py"], env=environment, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while len(finished(pattern, number)) < 2:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    time.sleep(0.5)  # the workers end with their parent
    before = finished(pattern, number)
    assert not CORPUS.exists()
    monkeypatch.setattr(pieces, "UNIT_BYTES", 100)
    after: dict[str, list[int]] = {}

    def look(store: Store, scratch: Path) -> None:
        after.update(finished(pattern, number))
        free_disk(store, scratch)

    free_disk = build._free_disk
    monkeypatch.setattr(build, "_free_disk", look)
    build_corpus(download(files(), num_shards=40), CORPUS)
    assert before.items() <= after.items()
    assert len(before) < len(after)
    resumed = tree_digests(CORPUS)
    shutil.rmtree(SHARD_WORK)
    build_corpus(download(files(), num_shards=40), CORPUS)
    assert tree_digests(CORPUS) == resumed
