"""A model with random weights and a byte-level BPE tokenizer trained on the corpus: for tests, trials and own languages.

    metrics = write_scratch_model(ScratchModel(source="scratch", num_layers=2), Path("data/corpus"), folder)

The same corpus and params give the same bytes.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prosemill.base_model.saving import quiet, save_base_model
from prosemill.console import say
from prosemill.end_of_text import END_OF_TEXT
from prosemill.errors import ProsemillError
from prosemill.families import family_named
from prosemill.params import ScratchModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BATCH_ROWS = 256
SAMPLE_BYTES = 64 << 20
"""Text that the tokenizer is trained on, at most: its memory and time grow with the number of different words, which never ends."""

BYTE_LEVEL_TOKENS = 257  # every byte and the end of text


def write_scratch_model(model: ScratchModel, corpus: Path, folder: Path) -> dict[str, Any]:
    """Train the tokenizer on the beginning of the corpus's train split, draw the weights, write both, and return the model's metrics.

    Raises:
        ProsemillError: the family is not supported or has no model of this shape, or the train split has no text.
    """
    family = family_named(model.family, whose="`download.model`: the model")
    with quiet():
        family.scratch_config(model, model.vocabulary_size)  # refuses a wrong shape before the tokenizer's work
    say(f"training a tokenizer of {model.vocabulary_size:,} tokens")
    with quiet():
        tokenizer = train_tokenizer(model.vocabulary_size, _texts(corpus))
        return save_base_model(family.draw(model, len(tokenizer)), tokenizer, folder)


def train_tokenizer(vocabulary_size: int, texts: Iterator[list[str]]) -> "PreTrainedTokenizerFast":
    """A byte-level BPE tokenizer (Sennrich et al. 2016; Radford et al. 2019) whose end of text has id 0.

    It has fewer tokens than asked for when the text holds too few pairs to merge.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    if backend.get_vocab_size() == BYTE_LEVEL_TOKENS < vocabulary_size:
        raise ProsemillError(
            "the corpus's train split has no text to train a tokenizer on: add documents or lower the other splits' shares"
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END_OF_TEXT, bos_token=None, unk_token=None)


def _texts(corpus: Path) -> Iterator[list[str]]:
    """The first `SAMPLE_BYTES` or so of the train split, in batches: a fair sample, as shards are in the order of a stable hash."""
    from pyarrow import parquet

    num_left = SAMPLE_BYTES
    for path in sorted((corpus / "train").glob("*.parquet")):
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH_ROWS, columns=["text"], use_threads=False):
                if num_left <= 0:
                    return
                num_left -= batch.nbytes
                yield batch.column("text").to_pylist()
