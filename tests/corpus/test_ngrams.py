"""Runs of words have equal hashes if and only if they are equal, on every machine and in bounded memory."""

import re

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prosemill.corpus import ngrams
from prosemill.corpus.ngrams import is_in, ngram_hashes

TEXTS = st.text(st.sampled_from("abÄß ,.\n_'9你"), max_size=60)


def plain_ngrams(text: str, num_words: int) -> list[tuple[str, ...]]:
    """What the hashes stand for: all runs of words, or the whole of a shorter text."""
    words = re.findall(r"[^\W_]+", text.casefold())
    size = min(num_words, len(words))
    return [tuple(words[start : start + size]) for start in range(len(words) - size + 1)] if words else []


def hashes_of(text: str, num_words: int) -> list[int]:
    return [number for piece in ngram_hashes(text.encode(), num_words) for number in piece.tolist()]


@given(texts=st.lists(TEXTS, max_size=6), num_words=st.integers(1, 4))
def test_equal_runs_have_equal_hashes_and_others_not(texts: list[str], num_words: int) -> None:
    runs = [run for text in texts for run in plain_ngrams(text, num_words)]
    hashes = [number for text in texts for number in hashes_of(text, num_words)]
    assert len(hashes) == len(runs)
    assert len(set(zip(runs, hashes, strict=True))) == len(set(runs)) == len(set(hashes))


@given(words=st.lists(st.text("abß", min_size=1, max_size=4), max_size=60), num_words=st.integers(1, 5), window=st.integers(12, 50))
@settings(deadline=None)
def test_the_size_of_the_window_changes_nothing(words: list[str], num_words: int, window: int) -> None:
    text = " ".join(words)
    whole = hashes_of(text, num_words)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngrams, "WINDOW_BYTES", window)
        assert hashes_of(text, num_words) == whole


def test_a_text_without_white_space_is_looked_at_in_bounded_pieces() -> None:
    text = "语" * ngrams.WINDOW_BYTES
    assert [len(piece) for piece in ngram_hashes(text.encode(), 3)] == [1, 1]


def test_hashes_are_the_same_on_every_machine() -> None:
    assert hashes_of("The cat sat.", 2) == [5410080254883117406, 12833668528045249031]


@given(values=st.lists(st.integers(0, 20)), table=st.sets(st.integers(0, 20)))
def test_membership(values: list[int], table: set[int]) -> None:
    found = is_in(numpy.array(values, dtype=numpy.uint64), numpy.array(sorted(table), dtype=numpy.uint64))
    assert found.tolist() == [value in table for value in values]
