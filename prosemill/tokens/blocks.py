"""The blocks of a split as a sequence: memory-mapped, read by computed indices, no list of samples.

    blocks = Blocks.open(Path("data/blocks"), "train")
    blocks[17]  # token ids, int64 [block_size]

A block is `block_size` consecutive tokens of the split's stream: documents follow each other, each closed by `end_of_text_id`, and a
document may begin in one block and end in the next.
"""

from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prosemill.shards import Row
from prosemill.tokens.files import check_row, check_size, open_tokens, rows_with

SPLIT_FACTS = ("split_num_tokens", "split_num_documents", "split_num_text_bytes")
FACTS = ("num_tokens", "block_size", "dtype", "end_of_text_id", *SPLIT_FACTS)


class Blocks:
    """The blocks of one split, in order. `len(blocks)`, `blocks[i]`; pickles as its path, so that data loader workers map it anew."""

    def __init__(self, folder: Path, split: str, rows: list[Row]) -> None:
        self.folder, self.split = folder, split
        self._shards = [open_tokens(check_size(folder, row), row["dtype"]) for row in rows]
        self._ends = list(accumulate(int(row["num_tokens"]) // int(row["block_size"]) for row in rows))
        first = rows[0]
        self.block_size: int = first["block_size"]
        """Tokens in a block."""
        self.end_of_text_id: int = first["end_of_text_id"]
        """Id of the token that ends every document."""
        self.num_tokens: int = first["split_num_tokens"]
        """Tokens of the whole split with its ends of text, the dropped remainder included."""
        self.num_documents: int = first["split_num_documents"]
        """Documents of the whole split."""
        self.num_text_bytes: int = first["split_num_text_bytes"]
        """UTF-8 bytes of the split's text: what bits per byte divide by."""

    @classmethod
    def open(cls, folder: Path, split: str) -> "Blocks":
        """Map the blocks of a split (train, validation or test) of a folder that `group_tokens` wrote.

        Raises:
            ProsemillError: the folder, the split or a file is missing, or a file's size contradicts the manifest.
        """
        rows = rows_with(folder, split, FACTS)
        for row in rows:
            check_row(folder, row, rows[0], same=FACTS[1:])
        return cls(folder, split, rows)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> NDArray[np.int64]:
        """Token ids of one block: int64 [block_size]. Raises `IndexError` beyond the last block."""
        if not 0 <= index < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        shard = bisect_right(self._ends, index)
        before = self._ends[shard - 1] if shard else 0
        start = (index - before) * self.block_size
        return self._shards[shard][start : start + self.block_size].astype(np.int64)

    def __reduce__(self) -> tuple[Any, ...]:
        return Blocks.open, (self.folder, self.split)
