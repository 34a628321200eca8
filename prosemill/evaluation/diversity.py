"""How varied a set of texts is: distinct n-grams, repetition and loops, over the tokens of `prosemill.evaluation.words`.

    diversity(["the cat sat", "the cat ran"])["distinct_1"]  # 4 / 6

The numbers mean something only beside those of human text of the same length, so the evaluation shows both.
"""

from collections.abc import Sequence

from prosemill.evaluation.words import tokens

REPETITION_ORDER = 4  # n-grams whose repetition is counted, as in seq-rep-4
CYCLE_COPIES = 3  # copies in a row that make a loop
CYCLE_TOKENS = 8  # shortest loop in tokens, so that an ellipsis is none


def diversity(texts: Sequence[str]) -> dict[str, float]:
    """Distinct-1/2/3, repetition rate and loop rate of a set of texts.

    Returns:
        `distinct_n`: different n-grams / n-grams, over all texts together (Li et al. 2016, "A Diversity-Promoting Objective
        Function for Neural Conversation Models"). `repetition_rate`: share of the 4-grams that occurred earlier in the same text,
        over the 4-grams of all texts (seq-rep-4 of Welleck et al. 2020, "Neural Text Generation with Unlikelihood Training").
        `loop_rate`: share of the texts that end in a cycle, see `ends_in_cycle`. A share of nothing is 0.
    """
    split = [tokens(text) for text in texts]
    rates = {f"distinct_{order}": distinct(split, order) for order in (1, 2, 3)}
    rates["repetition_rate"] = repetition(split, REPETITION_ORDER)
    rates["loop_rate"] = _share(sum(map(ends_in_cycle, split)), len(split))
    return rates


def distinct(split: Sequence[Sequence[str]], order: int) -> float:
    """Different n-grams of all texts / their n-grams."""
    ngrams = [ngram for text in split for ngram in _ngrams(text, order)]
    return _share(len(set(ngrams)), len(ngrams))


def repetition(split: Sequence[Sequence[str]], order: int) -> float:
    """Share of the n-grams that occurred earlier in the same text, every n-gram of every text weighing the same."""
    by_text = [_ngrams(text, order) for text in split]
    return _share(sum(len(ngrams) - len(set(ngrams)) for ngrams in by_text), sum(map(len, by_text)))


def ends_in_cycle(text: Sequence[str]) -> bool:
    """Whether for some period p the last max(3 p, 8) tokens are p tokens over and over (the cut may fall within a copy)."""
    for period in range(1, len(text) // CYCLE_COPIES + 1):
        span = max(CYCLE_COPIES * period, CYCLE_TOKENS)
        if span <= len(text) and list(text[-span:-period]) == list(text[len(text) - span + period :]):
            return True
    return False


def _ngrams(text: Sequence[str], order: int) -> list[tuple[str, ...]]:
    return [tuple(text[start : start + order]) for start in range(len(text) - order + 1)]


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
