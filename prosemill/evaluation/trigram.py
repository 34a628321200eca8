"""The baseline that every neural model must beat: an interpolated Kneser-Ney trigram over the model's own token ids.

    trigram = Trigram.count(tokens, vocabulary_size=4096, end_of_text_id=0)
    trigram.nll(document).sum() / math.log(2)  # bits

A token's probability is its count after the two tokens before it, less a discount; what the discounts free goes to the bigram, from there
to the unigram and to all tokens alike. Below the trigram a token counts once for each different context that it follows (Kneser and Ney
1995), with one discount per order (Chen and Goodman 1999). An n-gram is one integer, its tokens the digits in base `vocabulary_size`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

MAX_VOCABULARY_SIZE = 2_097_151  # its third power fits into 63 bits


@dataclass(frozen=True)
class _Order:
    """Counts of the n-grams of one length, and of what follows their first n - 1 tokens."""

    ngrams: Integers
    """Sorted, each once."""
    counts: Integers
    """Of each n-gram."""
    contexts: Integers
    """Their first n - 1 tokens, sorted, each once."""
    totals: Integers
    """Of each context, the sum of its n-grams' counts."""
    num_followers: Integers
    """Of each context, how many n-grams have it."""
    discount: float
    """Taken from each count, between 0 and 1."""

    @classmethod
    def count(cls, ngrams: Integers, counts: Integers, vocabulary_size: int) -> "_Order":
        """Arrange sorted n-grams and their counts."""
        contexts, starts = np.unique(ngrams // vocabulary_size, return_index=True)
        totals = np.add.reduceat(counts, starts) if len(starts) else counts
        num_ones, num_twos = int((counts == 1).sum()), int((counts == 2).sum())
        # A text in which no n-gram stands alone has no estimate, and a discount of 0 would make all that is new impossible.
        discount = max(num_ones, 1) / (max(num_ones, 1) + 2 * num_twos)
        return cls(ngrams, counts, contexts, totals, np.diff(starts, append=len(ngrams)), discount)

    def interpolate(self, ngrams: Integers, contexts: Integers, lower: NDArray[np.float64]) -> NDArray[np.float64]:
        """Probability of each n-gram's last token, given the lower order's; just that after a context that was never seen."""
        counts = _look_up(self.ngrams, self.counts, ngrams)
        totals = _look_up(self.contexts, self.totals, contexts)
        freed = self.discount * _look_up(self.contexts, self.num_followers, contexts)
        return np.where(totals > 0, (np.maximum(counts - self.discount, 0.0) + freed * lower) / np.maximum(totals, 1), lower)


@dataclass(frozen=True)
class Trigram:
    """What was counted."""

    orders: tuple[_Order, _Order, _Order]
    """Unigrams, bigrams and trigrams."""
    vocabulary_size: int
    """Tokens among which probability is shared out."""
    end_of_text_id: int
    """The token that closes documents, and stands twice before each."""
    num_tokens: int
    """Tokens counted, closing ones included."""

    @classmethod
    def count(cls, tokens: NDArray[Any], vocabulary_size: int, end_of_text_id: int) -> "Trigram":
        """Count a flat stream in which `end_of_text_id` closes each document, with about 60 bytes of memory a token."""
        assert 0 <= end_of_text_id < vocabulary_size <= MAX_VOCABULARY_SIZE
        tokens = np.asarray(tokens, dtype=np.int64)
        assert not len(tokens) or 0 <= tokens.min() <= tokens.max() < vocabulary_size
        trigrams, of_trigrams = np.unique(_trigrams(tokens, vocabulary_size, end_of_text_id), return_counts=True)
        bigrams, of_bigrams = np.unique(trigrams % vocabulary_size**2, return_counts=True)
        unigrams, of_unigrams = np.unique(bigrams % vocabulary_size, return_counts=True)
        orders = (
            _Order.count(unigrams, of_unigrams, vocabulary_size),
            _Order.count(bigrams, of_bigrams, vocabulary_size),
            _Order.count(trigrams, of_trigrams, vocabulary_size),
        )
        return cls(orders, vocabulary_size, end_of_text_id, len(tokens))

    def nll(self, tokens: Sequence[int]) -> NDArray[np.float64]:
        """-ln p of each token of one document, in nats, from the two tokens before it; the document's end is not among them."""
        trigrams = _trigrams(np.asarray(tokens, dtype=np.int64), self.vocabulary_size, self.end_of_text_id)
        probabilities: NDArray[np.float64] = np.full(len(trigrams), 1 / self.vocabulary_size)
        for number, order in enumerate(self.orders, start=1):
            ngrams = trigrams % self.vocabulary_size**number
            probabilities = order.interpolate(ngrams, ngrams // self.vocabulary_size, probabilities)
        nll: NDArray[np.float64] = -np.log(probabilities)
        return nll


def _trigrams(tokens: Integers, vocabulary_size: int, end_of_text_id: int) -> Integers:
    """Each token with the two before it; two ends of text stand before the first token of a document."""
    previous = np.concatenate(([end_of_text_id], tokens[:-1])) if len(tokens) else tokens
    before = np.concatenate(([end_of_text_id], previous[:-1])) if len(tokens) else tokens
    before = np.where(previous == end_of_text_id, end_of_text_id, before)
    return (before * vocabulary_size + previous) * vocabulary_size + tokens


def _look_up(keys: Integers, values: Integers, wanted: Integers) -> Integers:
    """The value of each wanted key, 0 where it is missing; the keys are sorted."""
    if not len(keys):
        return np.zeros_like(wanted)
    positions = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[positions] == wanted, values[positions], 0)
