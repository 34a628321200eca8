"""Text to token ids to fixed blocks, on disk, in constant memory.

    tokenize_corpus(Tokenize(), CORPUS, BASE_MODEL, TOKENS)
    group_tokens(Group(block_size=256), TOKENS, BASE_MODEL, BLOCKS)
    Blocks.open(BLOCKS, "train")[0]  # 256 token ids

Token files are flat arrays without a header: uint16 where the vocabulary allows, else uint32, little endian; the manifest beside them
names the type.
"""

from prosemill.tokens.blocks import Blocks
from prosemill.tokens.files import read_tokens
from prosemill.tokens.grouping import group_tokens
from prosemill.tokens.tokenizing import tokenize_corpus

__all__ = ["Blocks", "group_tokens", "read_tokens", "tokenize_corpus"]
