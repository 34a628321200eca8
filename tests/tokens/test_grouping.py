"""Blocks hold each token of a split once and in order; what is dropped is less than a block and counted; bad input is one line."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prosemill.errors import ProsemillError
from prosemill.params import Group, Tokenize
from prosemill.shards import MANIFEST, read_manifest, rows_of_split
from prosemill.tokens import Blocks, group_tokens, grouping, tokenize_corpus
from prosemill.workspace import SHARD_WORK, SPLITS
from tests.tokens.conftest import make_tokens, write_manifest

ROOT = Path(__file__).parents[2]
TOKENS, OUTPUT, MODEL = Path("data/tokens"), Path("data/blocks"), Path("models/base")


@pytest.fixture(autouse=True)
def one_worker(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, in an empty workspace with a model of context 1,000."""
    monkeypatch.setenv("PROSEMILL_WORKERS", "1")
    (workspace / MODEL).mkdir(parents=True)
    (workspace / MODEL / "config.json").write_text('{"model_type": "gpt2", "n_positions": 1000}')


def run(block_size: int) -> dict[str, object]:
    return group_tokens(Group(block_size=block_size), TOKENS, MODEL, OUTPUT)


def shards_of(lengths: list[int], seed: int = 0, highest: int = 1 << 16) -> list[list[int]]:
    """Random ids for token shards of the given lengths."""
    generator = np.random.default_rng(seed)
    return [generator.integers(0, highest, length).tolist() for length in lengths]


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.one_of(st.just(0), st.integers(0, 60), st.integers(0, 600)), min_size=1, max_size=6),
    block_size=st.integers(8, 90),
    chunk=st.integers(1, 100),
    dtype=st.sampled_from(["uint16", "uint32"]),
)
def test_blocks_hold_each_token_once_in_order(lengths: list[int], block_size: int, chunk: int, dtype: str) -> None:
    lengths = [*lengths, block_size]  # at least one block
    shards = shards_of(lengths, highest=1 << 16 if dtype == "uint16" else 1 << 32)
    whole = shards_of([block_size])
    stream = [token for shard in shards for token in shard]
    num_blocks, num_left = divmod(len(stream), block_size)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(grouping, "CHUNK", chunk)
        patch.setattr(os, "fsync", lambda _: None)  # for speed
        MODEL.mkdir(parents=True)
        (MODEL / "config.json").write_text('{"model_type": "t5"}')
        make_tokens(TOKENS, {"train": shards, "validation": whole, "test": whole}, dtype)
        metrics = run(block_size)
        blocks = Blocks.open(OUTPUT, "train")
        assert len(blocks) == num_blocks
        assert [token for index in range(num_blocks) for token in blocks[index].tolist()] == stream[: num_blocks * block_size]
        rows = rows_of_split(read_manifest(OUTPUT), "train")
        assert len(rows) == len(lengths)
        assert sum(row["num_blocks"] for row in rows) == num_blocks
        assert [row["num_dropped_tokens"] for row in rows] == [0] * (len(lengths) - 1) + [num_left]
        assert all(row["split_num_tokens"] == len(stream) for row in rows)
        totals = {"num_blocks": num_blocks, "num_tokens": len(stream), "num_dropped_tokens": num_left}
        assert metrics["splits"]["train"] == totals  # type: ignore[index]


def make_three_splits() -> None:
    make_tokens(TOKENS, {"train": shards_of([500, 0, 333, 1000]), "validation": shards_of([50, 51]), "test": shards_of([64])})


def test_same_bytes_for_any_number_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    make_three_splits()
    trees = []
    for workers in (1, 2, 3):
        monkeypatch.setenv("PROSEMILL_WORKERS", str(workers))
        shutil.rmtree(SHARD_WORK, ignore_errors=True)
        run(32)
        trees.append(tree(OUTPUT))
    assert len(trees[0]) == 8
    assert trees[0] == trees[1] == trees[2]


def test_split_totals_come_from_the_tokens_manifest() -> None:
    make_three_splits()
    run(32)
    blocks = Blocks.open(OUTPUT, "train")
    assert (blocks.num_tokens, blocks.num_documents, blocks.num_text_bytes) == (1833, 4, 40)
    assert (blocks.block_size, blocks.end_of_text_id) == (32, 0)
    rows = read_manifest(TOKENS)
    write_manifest(TOKENS, [{**row, "num_text_bytes": 99} for row in rows])
    run(32)  # the same ids of other texts: earlier work is not taken for done
    assert Blocks.open(OUTPUT, "train").num_text_bytes == 4 * 99


def test_from_text_to_blocks_and_back(prose_corpus: Path, tiny_model: Path) -> None:
    tokenize_corpus(Tokenize(), prose_corpus, tiny_model, TOKENS)
    metrics = group_tokens(Group(block_size=128), TOKENS, tiny_model, OUTPUT)
    for split in SPLITS:
        stream = np.concatenate([np.fromfile(TOKENS / row["file"], "<u2") for row in rows_of_split(read_manifest(TOKENS), split)])
        blocks = Blocks.open(OUTPUT, split)
        joined = np.concatenate([blocks[index] for index in range(len(blocks))])
        assert (joined == stream[: len(joined)]).all()
        assert len(stream) - len(joined) == metrics["splits"][split]["num_dropped_tokens"] < 128  # type: ignore[index]
        assert blocks.num_documents == (stream == 0).sum()


def test_blocks_are_int64_and_bounded_and_pickle_by_path() -> None:
    make_three_splits()
    run(32)
    blocks = Blocks.open(OUTPUT, "train")
    assert blocks[0].dtype == np.dtype("int64")
    assert blocks[0].shape == (32,)
    for index in (-1, len(blocks), 10**9):
        with pytest.raises(IndexError):
            blocks[index]
    content = pickle.dumps(blocks)
    assert len(content) < 500
    assert (pickle.loads(content)[7] == blocks[7]).all()  # noqa: S301


@pytest.mark.parametrize("key", ["max_position_embeddings", "n_positions", "n_ctx"])
def test_a_block_beyond_the_context_is_one_line(key: str) -> None:
    make_three_splits()
    (MODEL / "config.json").write_text(json.dumps({"model_type": "gpt2", key: 31}))
    with pytest.raises(ProsemillError, match=r"`group.block_size` is 32, but the model's context is 31 tokens .*: set it to 31 or less"):
        run(32)
    (MODEL / "config.json").write_text(json.dumps({"model_type": "gpt2", key: 32}))
    run(32)


def test_a_model_without_a_context_sets_no_bound() -> None:
    make_three_splits()
    (MODEL / "config.json").write_text('{"model_type": "t5", "n_positions": 32}')
    run(64)


@pytest.mark.parametrize(("content", "said"), [(None, "is missing"), ("{", "is not JSON")])
def test_a_bad_model_config_is_one_line(content: str | None, said: str) -> None:
    (MODEL / "config.json").unlink()
    if content is not None:
        (MODEL / "config.json").write_text(content)
    with pytest.raises(ProsemillError, match=rf"config.json {said}.*dvc repro download"):
        run(32)


def test_a_corpus_too_small_for_a_block_is_one_line() -> None:
    make_three_splits()
    with pytest.raises(ProsemillError, match=r"the split test has 64 tokens, less than one block of 65: lower `group.block_size`"):
        run(65)
    assert not OUTPUT.exists()


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"\xab")


def other_dtype(path: Path) -> None:
    rows = read_manifest(path.parent.parent)
    write_manifest(path.parent.parent, [{**row, "dtype": "uint32"} if row["file"] == "train/shard-00002.bin" else row for row in rows])


def unknown_dtype(path: Path) -> None:
    write_manifest(path.parent.parent, [{**row, "dtype": "int8"} for row in read_manifest(path.parent.parent)])


def other_count(path: Path) -> None:
    write_manifest(path.parent.parent, [{**row, "num_tokens": 7} for row in read_manifest(path.parent.parent)])


BAD_SHARDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, r"shard-00002.bin is missing"),
    "short": (shorten, r"shard-00002.bin has 665 bytes where MANIFEST.jsonl says 666"),
    "damaged": (flip, r"shard-00002.bin is damaged"),
    "two types": (other_dtype, r"contradicts itself at train/shard-0000"),
    "unknown type": (unknown_dtype, r"contradicts itself at train/shard-00000"),
    "other count": (other_count, r"contradicts itself at train/shard-00000"),
}


@pytest.mark.parametrize("kind", BAD_SHARDS)
def test_a_bad_token_shard_is_one_line(kind: str) -> None:
    make_three_splits()
    spoil, said = BAD_SHARDS[kind]
    spoil(TOKENS / "train/shard-00002.bin")
    with pytest.raises(ProsemillError, match=rf"{said}.*dvc repro") as caught:
        run(32)
    assert "\n" not in str(caught.value)
    assert not OUTPUT.exists()


def other_block_size(path: Path) -> None:
    rows = read_manifest(path.parent.parent)
    write_manifest(path.parent.parent, [{**row, "block_size": 16} if row["file"] == "train/shard-00002.bin" else row for row in rows])


BAD_BLOCKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, r"shard-00002.bin is missing"),
    "short": (shorten, r"shard-00002.bin has [\d,]+ bytes where MANIFEST.jsonl says"),
    "other block size": (other_block_size, r"contradicts itself at train/shard-00002.bin"),
    "unknown type": (unknown_dtype, r"contradicts itself at train/shard-00000.bin"),
    "no manifest": (lambda path: (path.parent.parent / MANIFEST).unlink(), r"MANIFEST.jsonl is missing"),
}


@pytest.mark.parametrize("kind", BAD_BLOCKS)
def test_bad_blocks_are_one_line(kind: str) -> None:
    make_three_splits()
    run(32)
    spoil, said = BAD_BLOCKS[kind]
    spoil(OUTPUT / "train/shard-00002.bin")
    with pytest.raises(ProsemillError, match=rf"{said}.*dvc repro"):
        Blocks.open(OUTPUT, "train")


def test_an_unknown_split_is_one_line() -> None:
    make_three_splits()
    run(32)
    with pytest.raises(ProsemillError, match=r"MANIFEST.jsonl has no file of the split dev"):
        Blocks.open(OUTPUT, "dev")


def test_the_stage_reads_its_section_and_writes_metrics() -> None:
    make_three_splits()
    Path("params.yaml").write_text("group:\n  block_size: 32\n")
    command = [sys.executable, "-m", "stages.group"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1].startswith("group: 7/7 shards in ")
    metrics = json.loads(Path("metrics/group.json").read_text())
    assert metrics["splits"]["train"] == {"num_blocks": 57, "num_dropped_tokens": 9, "num_tokens": 1833}
    Path("params.yaml").write_text("group:\n  block_size: 1024\n")
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "1024, but the model's context is 1000" in done.stderr
