"""Corpora and token folders made of given documents, and the kinds of text that break tokenisers."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prosemill.digests import sha256_of_file
from prosemill.shards import MANIFEST, Row
from prosemill.tokens.files import DTYPES
from prosemill.workspace import SPLITS

KINDS = {
    "empty": "",
    "one character": "a",
    "one space": " ",
    "one line break": "\n",
    "emoji": "👩‍👩‍👧‍👦 says 👋🏽, twice: 👋🏽👋🏽",
    "CRLF": "first\r\nsecond\r\n\r\nthird\r\n",
    "a line of a megabyte": "The quick brown fox jumps over 13 lazy dogs. " * (1_000_000 // 45),
    "a word of 100 kB": "fox" * 33_333,
    "Arabic": "مرحبا بالعالم، كيف حالك اليوم؟ ٣٫١٤",
    "Chinese": "人人生而自由，在尊严和权利上一律平等。\u3000他们赋有理性和良心。",
    "combining": "e\u0301 e\u0301\u0323 \u0301",
    "special tokens": "<|endoftext|> in<|endoftext|>side <|endoftext|>",
    "NUL": "a\0b \0 c",
    "separators": "a\x1c  b\x1d \x1e\x1f c\x85 d\xa0 e\u2028 f\u180e  g\u200b  h\ufeff i",
    "white space": " \t\n\r\x0b\x0c  \n\n x \t y  \n",
    "contractions": "it's I'll we've they'd 'sx ' s don't'",
    "numbers": "3.14 1,000,000 ²½Ⅷ 42nd",
    "beyond the BMP": "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𒀀𒀁 \U0010fffd",
}


def write_manifest(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """The manifest of rows, in the order of their files."""
    lines = [json.dumps(row, sort_keys=True) for row in sorted(rows, key=lambda row: str(row["file"]))]
    (folder / MANIFEST).write_text("\n".join(lines) + "\n", encoding="utf-8")


def make_corpus(folder: Path, splits: Mapping[str, Sequence[Sequence[str]]]) -> None:
    """A corpus as `download` writes it: by split, the documents of each shard."""
    rows = []
    schema = pa.schema([(name, pa.string()) for name in ("document_id", "text", "source", "label")])
    for split, shards in splits.items():
        for number, texts in enumerate(shards):
            name = f"{split}/shard-{number:05d}.parquet"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            ids = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
            columns = {"document_id": ids, "text": list(texts), "source": ["test"] * len(texts), "label": [None] * len(texts)}
            pq.write_table(pa.table(columns, schema=schema), folder / name)
            rows.append(
                {
                    "file": name,
                    "sha256": sha256_of_file(folder / name),
                    "num_bytes": (folder / name).stat().st_size,
                    "num_documents": len(texts),
                    "num_text_bytes": sum(len(text.encode()) for text in texts),
                }
            )
    write_manifest(folder, rows)


def make_tokens(folder: Path, splits: Mapping[str, Sequence[Sequence[int]]], dtype: str = "uint16") -> None:
    """A token folder as `tokenize` writes it: by split, the ids of each shard."""
    rows: list[Row] = []
    for split, shards in splits.items():
        for number, ids in enumerate(shards):
            name = f"{split}/shard-{number:05d}.bin"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(np.array(ids, DTYPES[dtype]).tobytes())
            rows.append(
                {
                    "file": name,
                    "sha256": sha256_of_file(folder / name),
                    "num_bytes": len(ids) * DTYPES[dtype].itemsize,
                    "num_tokens": len(ids),
                    "num_documents": 1,
                    "num_text_bytes": 10,
                    "dtype": dtype,
                    "end_of_text_id": 0,
                }
            )
    write_manifest(folder, rows)


@pytest.fixture
def prose_corpus(workspace: Path, prose: list[str]) -> Path:
    """A corpus of real prose and every kind of text: three training shards (one of them empty), two of each other split."""
    folder = workspace / "data/corpus"
    documents = [*prose[:40], *KINDS.values()]
    make_corpus(
        folder,
        {
            "train": [documents[::2], [], documents[1::2]],
            "validation": [prose[40:44], prose[44:46]],
            "test": [[], prose[46:50]],
        },
    )
    assert all((folder / split).is_dir() for split in SPLITS)
    return folder
