"""The last step of every source: check that model and tokenizer fit, end generation at the end of a document, write the folder.

with quiet():
    model = family.load(...)
    metrics = save_base_model(model, tokenizer, folder)
"""

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prosemill.errors import ProsemillError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

UNBOUNDED = 10**9  # tokens: what a tokenizer is told where the model has no longest input
NEVER_IN_UTF8 = frozenset({0xC0, 0xC1, *range(0xF5, 0x100)})


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars and warnings off the terminal: what matters of them is checked here and raised."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def save_base_model(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast", folder: Path) -> dict[str, Any]:
    """Write a model and its tokenizer as a folder, weights in the dtype that they have.

    Generation with the saved model ends at the end of a document, or where its makers say.

    Raises:
        ProsemillError: the tokenizer gives ids that the model lacks.
        OSError: the disk is full.
    """
    from prosemill.families import family_named
    from prosemill.pretrained import telling_a_full_disk

    family = family_named(model.config.model_type, whose="the base model")
    context_size = family.context_size(model.config.to_dict())
    vocabulary_size = int(model.config.vocab_size)
    if len(tokenizer) > vocabulary_size:
        raise ProsemillError(f"the base model has {vocabulary_size} embeddings for a vocabulary of {len(tokenizer)}: choose another model")
    _end_with_documents(model, tokenizer)
    # Decoding gives back the text as it was, also the spaces before punctuation.
    tokenizer.clean_up_tokenization_spaces = tokenizer.init_kwargs["clean_up_tokenization_spaces"] = False
    tokenizer.model_max_length = tokenizer.init_kwargs["model_max_length"] = context_size or UNBOUNDED
    with telling_a_full_disk(folder):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return {
        "family": family.name,
        "num_parameters": model.num_parameters(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "vocabulary_size": vocabulary_size,
        "context_size": context_size,
        "num_bytes_without_token": len(bytes_without_token(tokenizer)),
    }


def _end_with_documents(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast") -> None:
    """Make the end-of-text token one of those that end generation, and the padding."""
    from prosemill.pretrained import end_of_text_id

    config = model.generation_config
    assert config is not None
    own = config.eos_token_id if config.eos_token_id is not None else []
    end = end_of_text_id(tokenizer)
    config.eos_token_id = sorted({end, *([own] if isinstance(own, int) else own)})
    config.pad_token_id = end
    config._from_model_config = False  # else transformers 4 puts the model's own config in its place


def bytes_without_token(tokenizer: "PreTrainedTokenizerFast") -> bytes:
    """Bytes of valid UTF-8 that a byte-level vocabulary lacks, in order: its encoder drops them without a word."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    if '"ByteLevel"' not in json.dumps(state["pre_tokenizer"]):
        return b""
    vocabulary = state["model"]["vocab"]
    lost = sorted(byte for byte, character in bytes_to_unicode().items() if character not in vocabulary)
    return bytes(byte for byte in lost if byte not in NEVER_IN_UTF8)
