import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prosemill.corpus import build_corpus, pieces
from prosemill.workspace import CORPUS, SHARD_WORK, SPLITS
from tests.corpus import killing
from tests.corpus.corpora import download, files, tree_digests, write_texts

REPOSITORY = Path(__file__).parents[2]


def test_a_kill_at_any_point_of_the_disks_order_costs_nothing(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "UNIT_BYTES", killing.UNIT_BYTES)
    texts: dict[str, str | bytes] = {f"{index}.txt": f"text {index % 25}" for index in range(30)}
    write_texts(workspace / "texts", texts | {"near.txt": "Text 7!", "train/holds.txt": "It says: a b c d e f.", "test/held.txt": "a b c d e"})
    metrics = build_corpus(killing.killed_section(), CORPUS)
    assert metrics["num_near_duplicates"] == metrics["num_contaminated"] == 1
    expected = workspace / "expected.json"
    expected.write_text(json.dumps(tree_digests(CORPUS)))
    command = [sys.executable, "-m", "tests.corpus.killing", str(expected)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 30


BUILD = """
from prosemill.corpus import build_corpus, pieces
from tests.corpus import killing
from tests.corpus.corpora import download, files
from prosemill.workspace import CORPUS
if __name__ == "__main__":
    build_corpus(download(files(), num_shards=40), CORPUS)
"""


def finished_shards() -> dict[str, list[int]]:
    """Times at which the sidecars of each finished shard were written, by its number."""
    times: dict[str, list[int]] = {}
    for path in SHARD_WORK.glob("download-*/*/*.parquet.json"):
        times.setdefault(path.name, []).append(path.stat().st_mtime_ns)
    return {name: sorted(written) for name, written in times.items() if len(written) == len(SPLITS)}


def test_a_kill_in_the_midst_of_parallel_work_keeps_finished_shards(workspace: Path) -> None:
    write_texts(workspace / "texts", {f"{index}.txt": f"text {index}" for index in range(300)})
    (workspace / "main.py").write_text(BUILD)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PROSEMILL_WORKERS": "2"}
    with subprocess.Popen([sys.executable, "main.py"], env=environment, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while len(finished_shards()) < 2:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    time.sleep(0.5)  # the workers end with their parent
    finished = finished_shards()
    assert not CORPUS.exists()
    build_corpus(download(files(), num_shards=40), CORPUS)
    assert finished.items() <= finished_shards().items()
    resumed = tree_digests(CORPUS)
    shutil.rmtree(SHARD_WORK)
    build_corpus(download(files(), num_shards=40), CORPUS)
    assert tree_digests(CORPUS) == resumed
