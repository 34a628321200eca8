"""Text to the words that the metrics count, in any script, with no downloaded data.

    tokens("It's 5 o'clock.")  # ['It', "'", 's', '5', 'o', "'", 'clock', '.']
    words("Москва — Ёлка")     # ['москва', 'ёлка']

A word is a run of letters, combining marks and digits. Scripts that are written without spaces (Chinese, Japanese, Thai, ...) have no
such runs: each of their characters counts as one word, as in the usual character-level evaluation of Chinese.
"""

import re
import unicodedata
from functools import lru_cache

UNSPACED_SCRIPTS = ("CJK ", "HIRAGANA ", "KATAKANA ", "THAI ", "LAO ", "KHMER ", "MYANMAR ", "TIBETAN ")
"""How the Unicode names of characters begin that are written without spaces between words."""


def tokens(text: str) -> list[str]:
    """Words and punctuation marks, in order, case kept: what BLEU and the diversity metrics count."""
    return "".join(map(_with_spaces, unicodedata.normalize("NFC", text))).split()


def words(text: str) -> list[str]:
    """Words alone, in order, case folded: what ROUGE counts."""
    return [token for token in tokens(text.casefold()) if _in_word(token[0])]


def first_words(text: str, num_words: int) -> str:
    """The text up to the end of its `num_words`-th whitespace-separated word, spacing kept; all of it when it has fewer."""
    for number, match in enumerate(re.finditer(r"\S+", text), start=1):
        if number == num_words:
            return text[: match.end()]
    return text


@lru_cache(maxsize=1 << 16)
def _with_spaces(char: str) -> str:
    """The character, set apart by spaces unless it may be part of a longer word."""
    if _in_word(char) and not unicodedata.name(char, "").startswith(UNSPACED_SCRIPTS):
        return char
    return f" {char} "


def _in_word(char: str) -> bool:
    return unicodedata.category(char)[0] in "LMN"
