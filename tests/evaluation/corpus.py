"""A corpus folder for the tests, in the format that download writes."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prosemill.digests import sha256_of_file
from prosemill.pretrained import load_tokenizer

SOURCE = {"source": "files", "license": "CC0-1.0", "attribution": "nobody | in <particular>"}


def write_corpus(folder: Path, splits: dict[str, list[list[str]]]) -> Path:
    """Write the texts of each split's shards, a manifest and SOURCE.json; a document's id is its place."""
    rows = []
    for split, shards in splits.items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        for index, texts in enumerate(shards):
            path = folder / split / f"shard-{index:05d}.parquet"
            ids = [f"{split} {index} {number}" for number in range(len(texts))]
            columns = {"document_id": ids, "text": texts, "source": ["files"] * len(texts), "label": [None] * len(texts)}
            pq.write_table(pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()}), path)
            rows.append({"file": f"{split}/{path.name}", "sha256": sha256_of_file(path), "num_documents": len(texts)})
    (folder / "MANIFEST.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "SOURCE.json").write_text(json.dumps(SOURCE))
    return folder


def write_tokens(folder: Path, model: Path, texts: list[str]) -> Path:
    """Write the texts, each closed by token 0, as the one token file of a train split, with its manifest."""
    tokenizer = load_tokenizer(model)
    ids = np.array([token for text in texts for token in [*tokenizer.encode(text, add_special_tokens=False), 0]], "<u2")
    path = folder / "train/shard-00000.bin"
    path.parent.mkdir(parents=True)
    ids.tofile(path)
    row = {"file": "train/shard-00000.bin", "sha256": sha256_of_file(path), "num_bytes": ids.nbytes, "dtype": "uint16", "end_of_text_id": 0}
    (folder / "MANIFEST.jsonl").write_text(json.dumps(row) + "\n")
    return folder
