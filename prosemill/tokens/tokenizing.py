"""Text to token ids: every document whole, each followed by the end of text, no padding, no truncation.

    tokenize_corpus(Tokenize(), CORPUS, BASE_MODEL, TOKENS)

A corpus shard (Parquet) becomes a token shard (flat ids). Texts are read a batch at a time and their ids go straight to the file, so
memory does not grow with the corpus. Of every so many documents one is decoded again and compared with its text.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from prosemill import params
from prosemill.digests import sha256_of_file
from prosemill.end_of_text import choose_end_of_text
from prosemill.errors import ProsemillError
from prosemill.families import read_config
from prosemill.shards import HashingWriter, Row, Task, rows_of_split, run_shards
from prosemill.tokens.encoding import Encoder, load_tokenizer, vocabulary_size
from prosemill.tokens.files import check_digest, check_size, dtype_of, rows_with
from prosemill.workspace import SPLITS

BATCH_BYTES = 1 << 20  # text read at once, on average
MAX_BATCH_ROWS = 1 << 12
SUMS = ("num_documents", "num_tokens", "num_text_bytes", "num_verified", "num_lossy")


@dataclass(frozen=True, kw_only=True)
class TokenizeTask(Task):
    """A token shard: the corpus shard it is made from and how."""

    source: Path
    """Corpus shard, Parquet."""
    source_sha256: str
    """Its digest in the corpus's manifest."""
    num_documents: int
    """Documents in it, by the manifest."""
    num_text_bytes: int
    """UTF-8 bytes of its texts, by the manifest."""
    model: Path
    """Folder with the tokenizer."""
    end_of_text_id: int
    """Id written after every document."""
    vocabulary_size: int
    """One more than the highest id."""
    verify_every: int
    """Of so many documents one is decoded and compared."""


def tokenize_corpus(section: params.Tokenize, corpus: Path, model: Path, output: Path) -> dict[str, object]:
    """Turn the corpus into token ids and return the metrics.

    Args:
        section: The params section `tokenize`.
        corpus: Folder of the corpus, with its manifest.
        model: Model folder, for its tokenizer.
        output: Folder for the tokens.

    Returns:
        By split: `num_documents`, `num_tokens` (ends of text included), `num_text_bytes`, `num_verified` and `num_lossy` (documents
        decoded, and those that did not give their text back); beside them `vocabulary_size`, `dtype` and `end_of_text_id`.

    Raises:
        ProsemillError: an input is missing or damaged, the end of text is unknown, or the tokenizer has more ids than the model.
    """
    tokenizer = load_tokenizer(model)
    end_of_text_id = choose_end_of_text(tokenizer.get_vocab(), _end_of_sequence(model))
    size = vocabulary_size(tokenizer)
    check_vocabulary(size, model)
    tokenizer_sha256 = sha256_of_file(model / "tokenizer.json")
    tasks = [
        TokenizeTask(
            outputs=(str(Path(row["file"]).with_suffix(".bin")),),
            inputs=(row["sha256"], tokenizer_sha256),
            source=check_size(corpus, row),
            source_sha256=row["sha256"],
            num_documents=row["num_documents"],
            num_text_bytes=row["num_text_bytes"],
            model=model,
            end_of_text_id=end_of_text_id,
            vocabulary_size=size,
            verify_every=section.verify_every,
        )
        for split in SPLITS
        for row in rows_with(corpus, split, ("num_documents", "num_text_bytes"))
    ]
    config = {"end_of_text_id": end_of_text_id, "verify_every": section.verify_every}
    rows = run_shards("tokenize", tokenize_shard, tasks, config=config, output=output, measure="num_tokens")
    return {
        "dtype": dtype_of(size),
        "end_of_text_id": end_of_text_id,
        "splits": {split: _sums(rows_of_split(rows, split)) for split in SPLITS},
        "vocabulary_size": size,
    }


def tokenize_shard(task: TokenizeTask, writers: Mapping[str, HashingWriter]) -> dict[str, Row]:
    """Encode a corpus shard's texts in their order, each followed by the end of text.

    Raises:
        ProsemillError: the corpus shard is damaged or is not what the manifest says.
    """
    (name,) = task.outputs
    check_digest(task.source, task.source_sha256)
    encoder = _encoder(task.model, task.inputs[1], task.end_of_text_id)
    end_of_text = task.end_of_text_id.to_bytes(encoder.dtype.itemsize, "little")
    num_documents = num_text_bytes = num_verified = num_lossy = 0
    for texts, num_bytes in _batches(task):
        encoded = []
        for text in texts:
            encoded += [encoder.encode(text), end_of_text]
            if num_documents % task.verify_every == 0:
                num_verified += 1
                num_lossy += not encoder.gives_back(text)
            num_documents += 1
        num_text_bytes += num_bytes
        writers[name].write(b"".join(encoded))
    if (num_documents, num_text_bytes) != (task.num_documents, task.num_text_bytes):
        raise ProsemillError(f"{task.source} does not hold the documents that its manifest says: delete the corpus and run `dvc repro`")
    facts = {
        "num_documents": num_documents,
        "num_tokens": writers[name].num_bytes // encoder.dtype.itemsize,
        "num_text_bytes": num_text_bytes,
        "num_verified": num_verified,
        "num_lossy": num_lossy,
        "dtype": dtype_of(task.vocabulary_size),
        "end_of_text_id": task.end_of_text_id,
        "vocabulary_size": task.vocabulary_size,
    }
    return {name: facts}


def check_vocabulary(size: int, model: Path) -> None:
    """Raise `ProsemillError` if the tokenizer has ids for which the model has no embedding. A folder without a config sets no bound."""
    path = model / "config.json"
    if not path.is_file():
        return
    rows = read_config(model).get("vocab_size")
    if isinstance(rows, int) and size > rows:
        raise ProsemillError(
            f"the tokenizer of {model} has ids up to {size - 1:,}, but the model's vocab_size is {rows:,} ({path}): "
            "use the model's own tokenizer"
        )


@lru_cache(maxsize=1)
def _encoder(model: Path, tokenizer_sha256: str, end_of_text_id: int) -> Encoder:
    """One encoder for all shards of a process, so that its words stay known."""
    return Encoder.open(model, end_of_text_id)


def _batches(task: TokenizeTask) -> Iterator[tuple[list[str], int]]:
    """The texts of a corpus shard and their UTF-8 bytes, about `BATCH_BYTES` at a time."""
    import pyarrow.compute
    import pyarrow.parquet

    mean_bytes = task.num_text_bytes // max(task.num_documents, 1)
    rows = min(MAX_BATCH_ROWS, max(1, BATCH_BYTES // max(mean_bytes, 1)))
    try:
        with pyarrow.parquet.ParquetFile(task.source, buffer_size=BATCH_BYTES, pre_buffer=False) as file:
            for batch in file.iter_batches(rows, columns=["text"], use_threads=False):
                texts = batch.column("text")
                if texts.null_count:
                    raise ProsemillError(f"{task.source} has a document without text: delete the corpus and run `dvc repro`")
                num_bytes = pyarrow.compute.sum(pyarrow.compute.binary_length(texts)).as_py() or 0
                yield texts.to_pylist(), num_bytes
    except (pyarrow.ArrowInvalid, KeyError) as error:
        raise ProsemillError(f"{task.source} is not a corpus shard ({error}): delete the corpus and run `dvc repro`") from None


def _end_of_sequence(model: Path) -> str | None:
    """The tokenizer's own end of sequence, from tokenizer_config.json: a string, or an object with `content`."""
    path = model / "tokenizer_config.json"
    if not path.is_file():
        return None
    try:
        token = json.loads(path.read_text(encoding="utf-8")).get("eos_token")
    except ValueError as error:
        raise ProsemillError(f"{path} is not JSON ({error}): run `dvc repro download` to fetch the base model again") from None
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _sums(rows: Sequence[Row]) -> dict[str, Any]:
    return {fact: sum(row[fact] for row in rows) for fact in SUMS}
