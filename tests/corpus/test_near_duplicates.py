"""Of documents that are alike the first stays, the others are counted, and what is not alike is never dropped."""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prosemill.corpus import build_corpus, near_duplicates
from prosemill.corpus.near_duplicates import (
    NUM_PERMUTATIONS,
    RECALL,
    Places,
    Signature,
    band_keys,
    drop_near_duplicates,
    rows_of_band,
    signature,
)
from prosemill.corpus.ngrams import Hashes
from prosemill.workspace import CORPUS
from tests.corpus.corpora import download, files, read_corpus, write_texts
from tests.corpus.test_ngrams import plain_ngrams

THRESHOLDS = st.sampled_from([0.3, 0.5, 0.8, 0.9, 1.0])


def words(number: int, seed: str) -> list[str]:
    generator = random.Random(seed)  # noqa: S311 - words, no secrets
    return ["".join(generator.choices("abcdefghij", k=6)) for _ in range(number)]


def change(text: list[str], places: list[int]) -> list[str]:
    return [f"x{word}" if place in places else word for place, word in enumerate(text)]


def test_the_estimate_is_close_to_the_truth() -> None:
    text = words(400, "estimate")
    for step in (400, 100, 40, 20, 8):
        other = change(text, list(range(0, 400, step)))
        first, second = (set(plain_ngrams(" ".join(one), 5)) for one in (text, other))
        truth = len(first & second) / len(first | second)
        one, two = signature(" ".join(text).encode()), signature(" ".join(other).encode())
        assert one is not None
        assert two is not None
        assert (one == two).mean() == pytest.approx(truth, abs=0.13)


def test_a_long_text_is_signed_as_a_whole() -> None:
    """Also where it is looked at in windows: one half of it is half alike."""
    text = " ".join(words(40_000, "long"))
    whole, half = signature(text.encode()), signature(text[: len(text) // 2].encode())
    assert whole is not None
    assert half is not None
    assert (whole == half).mean() == pytest.approx(0.5, abs=0.15)


@given(threshold=st.floats(0.05, 1.0))
def test_bands_find_what_is_at_the_threshold(threshold: float) -> None:
    rows = rows_of_band(threshold)
    chance = 1 - (1 - threshold**rows) ** (NUM_PERMUTATIONS // rows)
    assert chance >= RECALL or rows == 1
    assert rows == NUM_PERMUTATIONS or 1 - (1 - threshold ** (rows + 1)) ** (NUM_PERMUTATIONS // (rows + 1)) < RECALL


@dataclass
class Held:
    """Signatures in memory."""

    kept: Signature
    keys: Hashes

    def band(self, band: int) -> Hashes:
        keys: Hashes = self.keys[band]
        return keys

    def signatures(self, documents: Places) -> Signature:
        return self.kept[documents]


def close_pairs(store: Held, order: list[int], threshold: float) -> list[tuple[int, int]]:
    """All pairs that share a band and are close, the earlier in the order first."""
    return [
        (first, second)
        for place, first in enumerate(order)
        for second in order[place + 1 :]
        if ((store.keys[:, first] == store.keys[:, second]) & (store.keys[:, first] != 0)).any()
        and (store.kept[first] == store.kept[second]).mean() >= threshold
    ]


@given(seed=st.integers(0, 10_000), number=st.integers(0, 25), threshold=THRESHOLDS)
@settings(deadline=None)
def test_what_stays_is_not_alike_and_what_goes_is_like_something_before_it(seed: int, number: int, threshold: float) -> None:
    generator = numpy.random.default_rng(seed)
    kept = generator.integers(0, 9, (1, NUM_PERMUTATIONS)).repeat(number, axis=0).astype(numpy.uint16)
    for document in range(1, number):  # each a changed copy of an earlier one
        kept[document] = kept[generator.integers(document)]
        changed = generator.random(NUM_PERMUTATIONS) < generator.choice([0.0, 0.1, 0.2, 0.5])
        kept[document, changed] = generator.integers(0, 9, changed.sum())
    has_words = generator.random(number) < 0.9
    store = Held(kept, band_keys(kept, rows_of_band(threshold)) * has_words)
    order = generator.permutation(number)[: number - number // 5]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_duplicates, "MAX_HEADS", number)
        dropped = drop_near_duplicates(store, order, threshold).tolist()
    pairs = close_pairs(store, order.tolist(), threshold)
    assert len(set(dropped)) == len(dropped)
    assert all(first in dropped or second in dropped for first, second in pairs)
    clusters = {document: {document} for document in order.tolist()}
    for first, second in pairs:
        joined = clusters[first] | clusters[second]
        clusters |= dict.fromkeys(joined, joined)
    firsts = {min(cluster, key=order.tolist().index) for cluster in clusters.values()}
    assert not firsts & set(dropped)


def test_a_band_with_many_unlike_documents_is_given_up_after_some() -> None:
    """Time stays bounded where thousands of documents share a beginning; what was found until then counts."""
    kept = numpy.random.default_rng(0).integers(0, 60_000, (100, NUM_PERMUTATIONS)).astype(numpy.uint16)
    kept[:, : rows_of_band(0.8)] = 7
    kept[99] = kept[0]
    store = Held(kept, band_keys(kept, rows_of_band(0.8)))
    assert drop_near_duplicates(store, numpy.arange(100), 0.8).tolist() == [99]


def build(workspace: Path, texts: dict[str, list[str]], **settings: object) -> tuple[set[str], int]:
    """Ids that stay, and the metric."""
    write_texts(workspace / "texts", {name: " ".join(text) for name, text in texts.items()})
    metrics = build_corpus(download(files(), near_duplicate_threshold=0.8, **settings), CORPUS)  # type: ignore[arg-type]
    return set(read_corpus(CORPUS)), metrics["num_near_duplicates"]


def test_near_copies_are_dropped_and_counted_and_others_stay(workspace: Path) -> None:
    text = words(100, "one")
    texts = {"a.txt": text, "b.txt": change(text, [50]), "c.txt": change(text, [0, 99]), "d.txt": words(100, "two")}
    half = {"e.txt": text[:50] + words(50, "three")}
    assert build(workspace, texts | half) == ({"a.txt", "d.txt", "e.txt"}, 2)


def test_null_keeps_them(workspace: Path) -> None:
    text = " ".join(words(50, "one"))
    write_texts(workspace / "texts", {"a.txt": text, "b.txt": f"{text}!"})
    metrics = build_corpus(download(files()), CORPUS)
    assert (metrics["num_documents"], metrics["num_near_duplicates"]) == (2, 0)


def test_case_and_punctuation_do_not_count(workspace: Path) -> None:
    texts = {"a.txt": ["Short", "text."], "b.txt": ["short,", "TEXT"], "c.txt": ["--"], "d.txt": ["..."], "e.txt": ["other", "text"]}
    assert build(workspace, texts) == ({"a.txt", "c.txt", "d.txt", "e.txt"}, 1)


def test_an_official_evaluation_document_stays_before_its_near_copies(workspace: Path) -> None:
    text, other = words(60, "one"), words(60, "two")
    texts = {
        "a.txt": change(text, [1]),
        "dev/b.txt": change(text, [59]),
        "test/c.txt": text,
        "train/d.txt": change(other, [3]),
        "validation/e.txt": other,
        "z.txt": change(other, [0]),
    }
    assert build(workspace, texts) == ({"test/c.txt", "validation/e.txt"}, 4)


def test_a_carved_evaluation_document_stays_before_its_near_copies(workspace: Path) -> None:
    """Of two hundred pairs, each in two files: whichever of the two is carved for evaluation stays."""
    pairs = [words(60, str(number)) for number in range(200)]
    write_texts(
        workspace / "texts",
        {
            name: "\n".join(json.dumps({"text": " ".join(change(text, changed))}) for text in pairs)
            for name, changed in (("a.jsonl", []), ("b.jsonl", [30]))
        },
    )
    build_corpus(download(files(), validation_share=0.2, test_share=0.2), CORPUS)
    splits = {name: built.split for name, built in read_corpus(CORPUS).items()}
    metrics = build_corpus(download(files(), validation_share=0.2, test_share=0.2, near_duplicate_threshold=0.5), CORPUS)
    ranks = {"test": 0, "validation": 1, "train": 2}
    expected = {min((f"{name}.jsonl#{line}" for name in "ab"), key=lambda each: (ranks[splits[each]], each)) for line in range(1, 201)}
    assert set(read_corpus(CORPUS)) == expected
    assert metrics["num_near_duplicates"] == 200
    assert len({name[0] for name in expected}) == 2
