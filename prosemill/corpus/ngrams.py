"""Runs of words as 64-bit hashes: what near-duplicates and contamination are told by.

    for hashes in ngram_hashes("The cat sat.".encode(), 2): ...  # one array of two: "the cat", "cat sat"

Words are what Unicode calls letters and digits, case-folded; punctuation and white space only separate them. The hash of a run is a
polynomial in the bytes of its words, joined by spaces, modulo 2^64, and then mixed: the same on every machine, and computed for all runs
of a text at once. Two given runs collide with a chance of about 2^-64.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy
from numpy.typing import NDArray

from prosemill.corpus.document import character_border

Hashes = NDArray[numpy.uint64]

WINDOW_BYTES = 1 << 16
"""Text looked at at a time, cut at white space; a longer text without any is cut between two characters."""

WORD = re.compile(r"[^\W_]+")
BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse
MIXING = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))  # splitmix64 (Steele et al. 2014)


def ngram_hashes(text: bytes, num_words: int) -> Iterator[Hashes]:
    """The hashes of all runs of `num_words` words of a UTF-8 text, in order, in pieces of bounded size.

    A text with fewer words is one run, so it equals only texts of the very same words. One without words has none.
    """
    words: list[str] = []
    is_short = True
    for window in _windows(text):
        words += WORD.findall(window.casefold())
        if len(words) >= num_words:
            yield _hashes(words, num_words)
            is_short = False
            words = words[len(words) - num_words + 1 :]
    if is_short and words:
        yield _hashes(words, len(words))


def mix(hashes: Hashes) -> Hashes:
    """Spread each number over all 64 bits, one to one."""
    for shift, factor in MIXING:
        hashes = (hashes ^ (hashes >> numpy.uint64(shift))) * numpy.uint64(factor)
    return hashes ^ (hashes >> numpy.uint64(31))


def is_in(values: NDArray[Any], table: NDArray[Any]) -> NDArray[numpy.bool_]:
    """Which values are in a sorted table, which may lie on disk."""
    if not len(table):
        return numpy.zeros(len(values), dtype=bool)
    places = numpy.minimum(numpy.searchsorted(table, values), len(table) - 1)
    found: NDArray[numpy.bool_] = table[places] == values
    return found


def _windows(text: bytes) -> Iterator[str]:
    start = 0
    while start < len(text):
        end = start + WINDOW_BYTES
        if end >= len(text):
            end = len(text)
        else:
            border = max(text.rfind(b" ", start, end), text.rfind(b"\n", start, end))
            end = border if border > start else character_border(text, end)
        yield text[start:end].decode()
        start = end


def _hashes(words: list[str], num_words: int) -> Hashes:
    """The hashes of all runs of at most as many words as there are."""
    data = numpy.frombuffer(" ".join(words).encode(), dtype=numpy.uint8)
    powers, inverses = _powers((len(data) - 1).bit_length())
    sums = numpy.zeros(len(data) + 1, dtype=numpy.uint64)
    numpy.cumsum(powers[: len(data)] * (data + numpy.uint64(1)), out=sums[1:])
    spaces = numpy.flatnonzero(data == ord(" "))
    starts = numpy.concatenate(([0], spaces + 1))[: len(words) - num_words + 1]
    ends = numpy.append(spaces, len(data))[num_words - 1 :]
    return mix((sums[ends] - sums[starts]) * inverses[starts])


@lru_cache(maxsize=WINDOW_BYTES.bit_length())  # one for each size of a text
def _powers(num_bits: int) -> tuple[Hashes, Hashes]:
    """The powers 1 … of the base, and of its inverse, modulo 2^64: 2^num_bits + 1 of each."""
    number = (1 << num_bits) + 1
    return tuple(numpy.cumprod(numpy.full(number, base, dtype=numpy.uint64)) for base in (BASE, pow(BASE, -1, 1 << 64)))  # type: ignore[return-value]
