"""The evaluated text in the models' tokens, and how many bytes and words of it a score counts.

tokenizer, end_of_text, text = read_text(section, documents, passages, {"base": BASE_MODEL, "trained": TRAINED_MODEL})
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, islice
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedTokenizerFast

from prosemill.errors import ProsemillError
from prosemill.evaluation.documents import Document, Passage
from prosemill.evaluation.scoring import scored_ranges
from prosemill.families import Family, family_of
from prosemill.params import Evaluate
from prosemill.pretrained import end_of_text_id, load_tokenizer

Tokens = list[int]


class Size(NamedTuple):
    """How much text was scored."""

    num_bytes: int
    """UTF-8 bytes."""
    num_words: int
    """Whitespace-separated words."""


class Encoded(NamedTuple):
    """A text's tokens."""

    ids: Tokens
    ends: list[int]
    """The character after each token."""


@dataclass(frozen=True)
class EvaluatedText:
    """The evaluated text as token ids, and how much of it is scored."""

    documents: list[Tokens]
    """Each whole, without end-of-text."""
    prompts: list[Tokens]
    """Of the passages that are continued."""
    latency_prompt: Tokens
    sizes: dict[int, Size]
    """What is scored, by stride."""


def strides_of(section: Evaluate) -> list[int]:
    """Tokens from one window to the next: the whole context, and half of it."""
    return [section.context, section.context // 2]


def read_text(
    section: Evaluate, documents: Sequence[Document], passages: Sequence[Passage], folders: Mapping[str, Path]
) -> tuple[PreTrainedTokenizerFast, int, EvaluatedText]:
    """The tokenizer that all folders share, its end-of-text token, and the text in its tokens.

    Raises:
        ProsemillError: the folders' tokenizers differ, or make no tokens of the text.
    """
    (first, *others) = folders.values()
    tokenizer = load_tokenizer(first)
    end_of_text = end_of_text_id(tokenizer)
    encoded = encode(tokenizer, [document.text for document in documents])
    if not any(encoding.ids for encoding in encoded):
        raise ProsemillError(
            f"the tokenizer of {first} makes no tokens of the {section.split} split: the base model does not fit the corpus"
        )
    for folder in others:
        other = load_tokenizer(folder)
        same = other.get_vocab() == tokenizer.get_vocab() and end_of_text_id(other) == end_of_text
        if not same or encode(other, [document.text for document in documents]) != encoded:
            raise ProsemillError(f"the tokenizers of {first} and {folder} differ: train from this base model again with `dvc repro train`")
    family = family_of(first)
    stream = chain.from_iterable([end_of_text, *encoding.ids] for encoding in encoded)
    text = EvaluatedText(
        documents=[encoding.ids for encoding in encoded],
        prompts=[encoding.ids for encoding in encode(tokenizer, [passage.prompt for passage in passages])],
        latency_prompt=list(islice(cycle(stream), section.latency_prompt_tokens))[1:],
        sizes={stride: size_of(family, documents, encoded, section.context, stride) for stride in strides_of(section)},
    )
    return tokenizer, end_of_text, text


def encode(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[Encoded]:
    """Tokens of each text, whole; names of special tokens in it are ordinary text, and none is added."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    encodings = backend.encode_batch(list(texts), add_special_tokens=False)
    return [Encoded(encoding.ids, [end for _, end in encoding.offsets]) for encoding in encodings]


def size_of(family: Family, documents: Sequence[Document], encoded: Sequence[Encoded], context: int, stride: int) -> Size:
    """UTF-8 bytes and words of the text whose tokens are scored at a stride; words are the original's where a document is scored whole."""
    num_bytes = num_words = 0
    for document, encoding in zip(documents, encoded, strict=True):
        num_tokens = len(encoding.ids)
        ranges = scored_ranges(family, num_tokens, context, stride)
        if ranges in ([], [(0, num_tokens)]):
            num_bytes, num_words = num_bytes + document.num_bytes, num_words + document.num_words
            continue
        borders = [0, *encoding.ends[:-1], len(document.text)]
        parts = [document.text[borders[first] : borders[end]] for first, end in ranges]
        num_bytes += sum(len(part.encode("utf-8")) for part in parts)
        num_words += sum(len(part.split()) for part in parts)
    return Size(num_bytes, num_words)
