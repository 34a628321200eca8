"""The trigram's probabilities are the textbook's, and nothing is impossible."""

import math
from collections import Counter
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.lm import KneserNeyInterpolated, Vocabulary

from prosemill.evaluation import trigram as module
from prosemill.evaluation.trigram import Trigram

Documents = list[list[int]]

END, VOCABULARY_SIZE = 0, 6

documents = st.lists(st.lists(st.integers(1, VOCABULARY_SIZE - 2), max_size=12), max_size=6)  # the last token is never seen


def count(texts: Documents) -> Trigram:
    return Trigram.count(np.array([token for text in texts for token in [*text, END]], dtype=np.uint16), VOCABULARY_SIZE, END)


def windows(texts: Documents) -> list[tuple[int, int, int]]:
    """All trigrams of documents that stand alone, their ends included."""
    padded = [[END, END, *text, END] for text in texts]
    return [(text[i], text[i + 1], text[i + 2]) for text in padded for i in range(len(text) - 2)]


class Textbook:
    """The same model in plain Python, written from the formulas of Chen and Goodman (1999), one token at a time."""

    def __init__(self, texts: Documents) -> None:
        self.counts: dict[int, Counter[tuple[int, ...]]] = {3: Counter(windows(texts))}
        for order in (2, 1):
            self.counts[order] = Counter(ngram[1:] for ngram in self.counts[order + 1])

    def discount(self, order: int) -> float:
        of_counts = Counter(self.counts[order].values())
        return max(of_counts[1], 1) / (max(of_counts[1], 1) + 2 * of_counts[2])

    def probability(self, ngram: tuple[int, ...]) -> float:
        if not ngram:
            return 1 / VOCABULARY_SIZE
        counts, discount, lower = self.counts[len(ngram)], self.discount(len(ngram)), self.probability(ngram[1:])
        followers = [number for other, number in counts.items() if other[:-1] == ngram[:-1]]
        if not followers:
            return lower
        return (max(counts[ngram] - discount, 0) + discount * len(followers) * lower) / sum(followers)


@given(documents, st.lists(st.integers(0, VOCABULARY_SIZE - 1), max_size=8))
def test_probabilities_are_the_textbooks(texts: Documents, text: list[int]) -> None:
    textbook = Textbook(texts)
    context = [END, END]
    expected = []
    for token in text:
        expected.append(-math.log(textbook.probability((*context, token))))
        context = [END, END] if token == END else [context[1], token]
    np.testing.assert_allclose(count(texts).nll(text), expected, rtol=1e-12)


@given(documents)
def test_probabilities_of_all_tokens_sum_to_one(texts: Documents) -> None:
    model = count(texts)
    for context in [[], *([first] for first in range(1, VOCABULARY_SIZE)), *map(list, product(range(1, VOCABULARY_SIZE), repeat=2))]:
        probabilities = [math.exp(-model.nll([*context, token])[-1]) for token in range(VOCABULARY_SIZE)]
        assert math.fsum(probabilities) == pytest.approx(1, abs=1e-12)
        assert min(probabilities) > 0


@pytest.mark.filterwarnings("error")
def test_nothing_counted_leaves_all_tokens_alike() -> None:
    model = Trigram.count(np.array([], dtype=np.uint16), VOCABULARY_SIZE, END)
    np.testing.assert_allclose(model.nll([1, 5, 0]), math.log(VOCABULARY_SIZE))
    assert len(model.nll([])) == 0


def test_nltk_agrees() -> None:
    generator = np.random.default_rng(0)
    texts: Documents = [generator.choice([1, 1, 1, 2, 2, 3, 4], size=20).tolist() for _ in range(20)]
    model, discount = count(texts), 0.1
    unigrams, bigrams, trigrams = model.orders
    # NLTK has one discount for bigrams and trigrams and none for unigrams, where it does not know unseen tokens.
    orders = (replace(unigrams, discount=0.0), replace(bigrams, discount=discount), replace(trigrams, discount=discount))
    model = replace(model, orders=orders)
    theirs = KneserNeyInterpolated(3, discount=discount, vocabulary=Vocabulary(map(str, range(VOCABULARY_SIZE))))
    words = [tuple(map(str, window)) for window in windows(texts)]
    theirs.fit([[ngram for window in words for ngram in (window, window[1:], window[2:])]])
    for context in {window[:2] for window in windows(texts)}:
        text = [token for token in context if token != END]
        for token in range(VOCABULARY_SIZE - 1):
            assert math.exp(-model.nll([*text, token])[-1]) == pytest.approx(theirs.score(str(token), tuple(map(str, context))), rel=1e-12)


def test_documents_do_not_see_each_other() -> None:
    texts = [[1, 2, 3], [4, 1], [2, 2, 2, 1]]
    assert (count(texts).nll([1, 2, 4]) == count(texts[::-1]).nll([1, 2, 4])).all()


def test_the_largest_vocabulary_fits() -> None:
    size = module.MAX_VOCABULARY_SIZE
    model = Trigram.count(np.array([size - 1, size - 1, size - 1, 0]), size, 0)
    assert model.nll([size - 1, size - 1, size - 1]).max() < 1 < model.nll([size - 2])[0]
