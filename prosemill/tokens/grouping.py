"""Token ids to blocks of exactly one size, computed from offsets into the split's token stream.

    group_tokens(Group(block_size=256), TOKENS, BASE_MODEL, BLOCKS)

The stream of a split is its token shards one after the other. Block i holds its tokens [i·block_size, (i+1)·block_size), so what remains
at the end of a shard is carried into the next, and only the end of the split, less than a block, is dropped and counted. A block shard is
a range of that stream, so shards are made in parallel and none needs more memory than the chunk it copies.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from prosemill import params
from prosemill.digests import sha256_of_value
from prosemill.errors import ProsemillError
from prosemill.families import family_named, read_config
from prosemill.shards import HashingWriter, Row, Task, run_shards
from prosemill.tokens.files import check_digest, check_row, check_size, open_tokens, rows_with
from prosemill.workspace import SPLITS

CHUNK = 1 << 20  # tokens copied at once
FACTS = ("num_tokens", "num_documents", "num_text_bytes", "dtype", "end_of_text_id")


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A range of tokens of one token shard."""

    path: Path
    """The token shard."""
    sha256: str
    """Its digest in the manifest."""
    start: int
    """First token."""
    stop: int
    """One after the last token."""


@dataclass(frozen=True, kw_only=True)
class GroupTask(Task):
    """A block shard: pieces of the stream, in order."""

    pieces: tuple[Piece, ...]
    """Where its tokens lie."""
    dtype: str
    """Type of the ids."""
    facts: Row
    """What its manifest row says beside the file."""


def group_tokens(section: params.Group, tokens: Path, model: Path, output: Path) -> dict[str, object]:
    """Cut the tokens of every split into blocks and return the metrics.

    Args:
        section: The params section `group`.
        tokens: Folder that `tokenize_corpus` wrote.
        model: Model folder, whose context bounds the block size.
        output: Folder for the blocks.

    Returns:
        By split: `num_blocks`, `num_tokens` (of the stream) and `num_dropped_tokens`; beside them `block_size`.

    Raises:
        ProsemillError: the block size is beyond the model's context, its family is not supported, a split has less than one block,
            or an input is missing or damaged.
    """
    check_context(section.block_size, model)
    read = {split: _read_split(split, tokens) for split in SPLITS}
    tasks = [task for split, rows in read.items() for task in _plan(split, tokens, rows, section.block_size)]
    used = [[row[fact] for fact in ("file", "sha256", *FACTS)] for rows in read.values() for row in rows]
    config = {"block_size": section.block_size, "tokens": sha256_of_value(used)}
    rows = run_shards("group", group_shard, tasks, config=config, output=output, measure="num_tokens")
    return {"block_size": section.block_size, "splits": {split: _totals(split, rows) for split in SPLITS}}


def group_shard(task: GroupTask, writers: Mapping[str, HashingWriter]) -> dict[str, Row]:
    """Copy the shard's range of the stream, chunk by chunk."""
    (name,) = task.outputs
    for piece in task.pieces:
        check_digest(piece.path, piece.sha256)
        ids = open_tokens(piece.path, task.dtype)
        for start in range(piece.start, piece.stop, CHUNK):
            writers[name].write(ids[start : min(start + CHUNK, piece.stop)])
    return {name: task.facts}


def check_context(block_size: int, model: Path) -> None:
    """Raise `ProsemillError` if a block is longer than the model's context, or the model's config cannot be read.

    Some architectures (T5, with its relative positions) set no bound.
    """
    config = read_config(model)
    context = family_named(config.get("model_type"), whose=str(model)).context_size(config)
    if context is not None and block_size > context:
        raise ProsemillError(
            f"`group.block_size` is {block_size}, but the model's context is {context} tokens ({model / 'config.json'}): "
            f"set it to {context} or less in params.yaml"
        )


def _read_split(split: str, tokens: Path) -> list[Row]:
    rows = rows_with(tokens, split, FACTS)
    for row in rows:
        check_row(tokens, row, rows[0], same=("dtype", "end_of_text_id"))
        check_size(tokens, row)
    return rows


def _plan(split: str, tokens: Path, rows: Sequence[Row], block_size: int) -> list[GroupTask]:
    """As many block shards as the split has token shards, their numbers of blocks equal to within one."""
    totals = {f"split_{fact}": sum(row[fact] for row in rows) for fact in ("num_tokens", "num_documents", "num_text_bytes")}
    num_blocks, num_left = divmod(totals["split_num_tokens"], block_size)
    if num_blocks == 0:
        raise ProsemillError(
            f"the split {split} has {num_left:,} tokens, less than one block of {block_size}: "
            "lower `group.block_size`, take more documents, or give the split a larger share in params.yaml"
        )
    borders = [num_blocks * shard // len(rows) for shard in range(len(rows) + 1)]
    tasks = []
    for shard, (first, last) in enumerate(pairwise(borders)):
        pieces = _pieces(tokens, rows, first * block_size, last * block_size)
        facts = {
            "num_blocks": last - first,
            "num_tokens": (last - first) * block_size,
            "block_size": block_size,
            "dtype": rows[0]["dtype"],
            "end_of_text_id": rows[0]["end_of_text_id"],
            "num_dropped_tokens": num_left if shard == len(rows) - 1 else 0,
            **totals,
        }
        tasks.append(
            GroupTask(
                outputs=(f"{split}/shard-{shard:05d}.bin",),
                inputs=tuple(piece.sha256 for piece in pieces),
                pieces=pieces,
                dtype=rows[0]["dtype"],
                facts=facts,
            )
        )
    return tasks


def _pieces(folder: Path, rows: Sequence[Row], start: int, stop: int) -> tuple[Piece, ...]:
    """The parts of the token shards that make up the stream's range [start, stop)."""
    ends = list(accumulate(int(row["num_tokens"]) for row in rows))
    pieces = []
    for row, end in zip(rows, ends, strict=True):
        before = end - int(row["num_tokens"])
        low, high = max(start, before) - before, min(stop, end) - before
        if low < high:
            pieces.append(Piece(path=folder / row["file"], sha256=row["sha256"], start=low, stop=high))
    return tuple(pieces)


def _totals(split: str, rows: Sequence[Row]) -> dict[str, Any]:
    mine = [row for row in rows if str(row["file"]).startswith(f"{split}/")]
    return {
        "num_blocks": sum(row["num_blocks"] for row in mine),
        "num_tokens": mine[0]["split_num_tokens"],
        "num_dropped_tokens": sum(row["num_dropped_tokens"] for row in mine),
    }
