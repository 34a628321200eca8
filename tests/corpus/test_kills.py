"""A build that is killed at any point costs no finished work and leaves nothing half-written."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from prosemill.corpus import build, build_corpus, pieces
from prosemill.corpus.units import KINDS, Store
from prosemill.workspace import CORPUS, SHARD_WORK, SPLITS
from tests.corpus import killing
from tests.corpus.corpora import download, files, finished, tree_digests, write_texts
from tests.waiting import LIMIT, until

REPOSITORY = Path(__file__).parents[2]


def test_a_kill_at_any_point_of_the_disks_order_costs_nothing(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    write_texts(workspace / "texts", {f"{index}.txt": f"text {index % 25}" for index in range(30)})
    alike: dict[str, str | bytes] = {"near.txt": "Text 7!", "train/holds.txt": "It says: a b c d e f.", "test/held.txt": "a b c d e"}
    write_texts(workspace / "texts", alike)
    metrics = build_corpus(killing.killed_section(), CORPUS)
    assert metrics["num_near_duplicates"] == metrics["num_contaminated"] == 1
    expected = tree_digests(CORPUS)

    for folder in (CORPUS, SHARD_WORK):
        shutil.rmtree(folder)

    states = killing.states_of(lambda: build_corpus(killing.killed_section(), CORPUS), tmp_path_factory.mktemp("states"))
    assert len(states) > 50
    for state in states:
        killing.restore(state)
        build_corpus(killing.killed_section(), CORPUS)
        assert tree_digests(CORPUS) == expected, state.name
        assert killing.leftovers() == [], state.name


# The workers import it as well. Nobody begins another piece of work once two are finished: the kill may take its time to come.
BUILD = """
import sys, time
from prosemill import shards
from prosemill.corpus import build_corpus, pieces
from tests.corpus.corpora import download, files, finished
from tests.waiting import LIMIT, until
from prosemill.workspace import CORPUS

def write_parts(*arguments):
    while len(finished(sys.argv[1], int(sys.argv[2]))) >= 2:
        time.sleep(0.01)
    return original(*arguments)

original, shards._write_parts = shards._write_parts, write_parts
pieces.UNIT_BYTES = 100
if __name__ == "__main__":
    build_corpus(download(files(), num_shards=12), CORPUS)
"""


@pytest.mark.parametrize(
    ("pattern", "number"), [("read-*/*.json", len(KINDS)), ("download-*/*/*.parquet.json", len(SPLITS))], ids=["reading", "writing"]
)
def test_a_kill_in_the_midst_of_parallel_work_keeps_what_is_finished(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, number: int
) -> None:
    write_texts(workspace / "texts", {f"{index}.txt": f"text {index}" for index in range(120)})
    (workspace / "main.py").write_text(BUILD)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PROSEMILL_WORKERS": "2"}
    command = [sys.executable, "main.py", pattern, str(number)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        until(lambda: len(finished(pattern, number)) >= 2 or process.poll() is not None, "two pieces are finished")
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not psutil.wait_procs(family, timeout=LIMIT)[1], "the workers end with their parent"
    before = finished(pattern, number)
    assert not CORPUS.exists()
    monkeypatch.setattr(pieces, "UNIT_BYTES", 100)
    after: dict[str, list[int]] = {}

    def look(store: Store, scratch: Path) -> None:
        after.update(finished(pattern, number))
        free_disk(store, scratch)

    free_disk = build._free_disk
    monkeypatch.setattr(build, "_free_disk", look)
    build_corpus(download(files(), num_shards=12), CORPUS)
    assert before.items() <= after.items()
    assert len(before) < len(after)
    resumed = tree_digests(CORPUS)
    shutil.rmtree(SHARD_WORK)
    build_corpus(download(files(), num_shards=12), CORPUS)
    assert tree_digests(CORPUS) == resumed
