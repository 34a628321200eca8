"""Model folders in the Hugging Face format: config.json, model.safetensors, tokenizer.json.

Loading never runs code of the folder: only safetensors are read, and a config that names remote code is refused.
"""

import errno
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from prosemill.end_of_text import choose_end_of_text
from prosemill.errors import FULL_DISK, ProsemillError
from prosemill.families import family_of


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a model folder.

    Raises:
        ProsemillError: the folder lacks it, or a config names code of its own.
    """
    if not (folder / "tokenizer.json").is_file():
        raise ProsemillError(f"{folder} has no tokenizer.json: run `dvc repro download` to fetch the base model again")
    refuse_remote_code(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    return tokenizer


def load_model(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The language model of a folder, on the CPU, in evaluation mode, its weights in `dtype`.

    Raises:
        ProsemillError: a file is missing, the family is not supported, or the config names code of its own.
    """
    refuse_remote_code(folder)
    if not list(folder.glob("*.safetensors")):
        raise ProsemillError(f"{folder} has no .safetensors file: run `dvc repro download` to fetch the base model again")
    return family_of(folder).load(folder, dtype=dtype, use_safetensors=True)


def refuse_remote_code(folder: Path) -> None:
    """Raise `ProsemillError` if the folder has no config.json, or a config of it is broken or names code to be imported (`auto_map`)."""
    if not (folder / "config.json").is_file():
        raise ProsemillError(f"{folder} has no config.json: it is not a model folder")
    for path in (folder / "config.json", folder / "tokenizer_config.json"):
        try:
            config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except (ValueError, RecursionError) as error:
            raise ProsemillError(f"{path} is not JSON: {error}") from None
        if isinstance(config, dict) and "auto_map" in config:
            raise ProsemillError(
                f"{path} names code of its own (auto_map), which Prosemill never runs: choose a model that transformers knows"
            )


TORCH_WROTE_LESS = "inline_container.cc"
"""The file of torch that complains when a file takes less than it is given; it does not say why."""


@contextmanager
def telling_a_full_disk(folder: Path) -> Iterator[None]:
    """While a model or tokenizer is saved into `folder`: turn its libraries' errors for a full disk into the `OSError` that they hide."""
    try:
        yield
    except Exception as error:
        found = re.search(r"\(os error (\d+)\)", str(error))  # how Rust ends its messages
        code = int(found[1]) if found else errno.ENOSPC if TORCH_WROTE_LESS in str(error) else None
        if isinstance(error, OSError) or code not in FULL_DISK:
            raise
        raise OSError(code, os.strerror(code), str(folder)) from None


def end_of_text_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """Id of the token that ends every document. Raises `ProsemillError` if the tokenizer has none."""
    return choose_end_of_text(tokenizer.get_vocab(), tokenizer.eos_token)


def stop_tokens(tokenizer: PreTrainedTokenizerFast, end_of_text_id: int) -> list[int]:
    """What ends a text: end-of-text, and the tokenizer's own end of sequence where it is another (a chat model's end of turn)."""
    own = tokenizer.eos_token_id
    return [end_of_text_id] if own is None or own == end_of_text_id else [end_of_text_id, int(own)]


def added_text(tokenizer: PreTrainedTokenizerFast, prompt: Sequence[int], new_tokens: Sequence[int]) -> str:
    """What the new tokens add to the prompt's text: some tokenizers drop a space when a text begins, so both are decoded together."""
    before = str(tokenizer.decode(list(prompt), skip_special_tokens=True, clean_up_tokenization_spaces=False))
    whole = str(tokenizer.decode([*prompt, *new_tokens], skip_special_tokens=True, clean_up_tokenization_spaces=False))
    return whole[len(before) :]
