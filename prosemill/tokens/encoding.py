r"""Text to token ids, exactly as the tokenizer's own library gives them, several times faster where that is provable.

    encoder = Encoder.open(Path("models/base"), end_of_text=0)
    ids = encoder.encode("Once upon a time")  # bytes: uint16 or uint32, little endian

**Why words may be encoded one by one.** A byte-level BPE tokenizer of GPT-2's kind (Radford et al. 2019) first splits the text with

    's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+

and then merges bytes inside each piece only. Every alternative either has no white space after its first character or is white space
alone. So a white-space character that follows another kind of character always begins a new piece; and as matching goes from left to
right without looking back, the pieces from there on depend on the text from there on alone, while those before it see an end where the
white space was: `\s+(?!\S)`, the only alternative that looks ahead, cannot match across it, since the character before the border is not
white space. Hence the ids of the text are the ids of its parts between such borders, joined. Splitting digits off first (as SmolLM2 does)
depends on single characters only and changes nothing. A text's parts are mostly words seen before, whose ids are looked up; the library
encodes the others.

This holds without a normaliser, without added tokens that are matched inside the text, and without dropout. Everything else (Unigram,
WordPiece, other patterns) is encoded whole by the library.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prosemill.errors import ProsemillError
from prosemill.tokens.files import DTYPES, dtype_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# A part begins before a space, tab or line break that follows a character which is no white space. What Python calls white space
# includes all that the library calls so, and more: around the other kinds (\x1c, no-break space, ...) the text is not cut.
PARTS = re.compile(r"\s*+\S++(?:[^\S \t\n\r]\s*+\S*+)*+|\s++")
BORDER = re.compile(r"(?<=\S)[ \t\n\r]")
WINDOW = 1 << 20  # characters cut into parts at once: a list of the parts of a text takes some twenty times its size
MAX_WORDS = 1 << 18  # words whose ids are remembered: about 60 MB
MAX_WORD_CHARACTERS = 64  # longer ones seldom come again


class Encoder:
    """Encodes texts with one tokenizer. Not for several threads at once."""

    def __init__(self, tokenizer: "Tokenizer", dtype: str, end_of_text: int, by_words: bool) -> None:
        self._tokenizer, self.dtype, self._end_of_text = tokenizer, DTYPES[dtype], end_of_text
        self._ids_of = _Words(self._encode_whole) if by_words else None

    @classmethod
    def open(cls, model: Path, end_of_text: int) -> "Encoder":
        """An encoder with the tokenizer of a model folder; `end_of_text` is the id that no text may contain."""
        tokenizer = load_tokenizer(model)
        by_words = is_local_to_words(json.loads(tokenizer.to_str()))
        return cls(tokenizer, dtype_of(vocabulary_size(tokenizer)), end_of_text, by_words)

    def encode(self, text: str) -> bytes:
        """The text's ids as bytes of `dtype`, without an end of text. Names of special tokens in it are ordinary text."""
        if self._ids_of is None:
            return self._encode_whole(text)
        ids_of = self._ids_of.__getitem__
        return b"".join([b"".join(map(ids_of, PARTS.findall(window))) for window in _windows(text)])

    def decode(self, ids: bytes) -> str:
        """The text of ids that `encode` gave."""
        return str(self._tokenizer.decode(np.frombuffer(ids, self.dtype).tolist(), skip_special_tokens=False))

    def gives_back(self, text: str) -> bool:
        """Whether the text's ids decode to the text itself, byte by byte. A long text is checked in the pieces it is encoded in."""
        pieces = [text] if self._ids_of is None else _windows(text)
        return all(self.decode(self.encode(piece)) == piece for piece in pieces)

    def _encode_whole(self, text: str) -> bytes:
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
        ids = encoding.ids
        if self._end_of_text in ids:
            raise ProsemillError(
                f"the token that ends a text, {self._tokenizer.id_to_token(self._end_of_text)!r}, also occurs inside documents: "
                "choose a model whose tokenizer keeps it apart"
            )
        return np.array(ids, self.dtype).tobytes()


def _windows(text: str) -> Iterator[str]:
    """The text in pieces of about `WINDOW` characters that begin where parts begin."""
    start = 0
    while len(text) - start > WINDOW and (border := BORDER.search(text, start + WINDOW)):
        yield text[start : border.start()]
        start = border.start()
    yield text[start:]


class _Words(dict[str, bytes]):
    """The ids of words met before; a new one is encoded. Emptied when it is full, so that its memory is bounded."""

    def __init__(self, encode: Callable[[str], bytes]) -> None:
        super().__init__()
        self._encode = encode

    def __missing__(self, word: str) -> bytes:
        ids = self._encode(word)
        if len(word) <= MAX_WORD_CHARACTERS:
            if len(self) >= MAX_WORDS:
                self.clear()
            self[word] = ids
        return ids


def load_tokenizer(model: Path) -> "Tokenizer":
    """The tokenizer of a model folder, set to take texts as they are: whole, and with special tokens' names as ordinary text.

    Raises:
        ProsemillError: tokenizer.json is missing or broken.
    """
    from tokenizers import Tokenizer

    path = model / "tokenizer.json"
    if not path.is_file():
        raise ProsemillError(f"{path} is missing: run `dvc repro download` to fetch the base model again")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
        raise ProsemillError(f"{path} is not a tokenizer ({error}): run `dvc repro download` to fetch the base model again") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def vocabulary_size(tokenizer: "Tokenizer") -> int:
    """One more than the highest id: what a type must hold and an embedding must have rows for."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def is_local_to_words(tokenizer: dict[str, Any]) -> bool:
    """Whether a tokenizer.json is one of those of which this module's docstring proves that words may be encoded one by one."""
    return (
        tokenizer["model"].get("type") == "BPE"
        and not tokenizer["model"].get("dropout")
        and tokenizer.get("normalizer") is None
        and all(token["special"] for token in tokenizer["added_tokens"])
        and _splits_at_white_space(tokenizer.get("pre_tokenizer"))
    )


def _splits_at_white_space(pre_tokenizer: dict[str, Any] | None) -> bool:
    if pre_tokenizer is None:
        return False
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    *before, last = steps
    is_gpt2 = last["type"] == "ByteLevel" and last.get("use_regex", True) and not last["add_prefix_space"]
    return is_gpt2 and all(step["type"] == "Digits" for step in before)
