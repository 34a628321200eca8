"""No run of words of an evaluation document is left in the training text."""

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prosemill.corpus import build_corpus
from prosemill.workspace import CORPUS
from tests.conftest import write_json_lines
from tests.corpus.corpora import Built, download, files, read_corpus, write_texts
from tests.corpus.test_ngrams import plain_ngrams

TEXTS = st.lists(st.sampled_from("ab"), min_size=1, max_size=7).map(" ".join)
ROWS = st.lists(st.tuples(st.sampled_from(["train", "test", "other"]), TEXTS), min_size=1, max_size=15)


def runs_of(built: dict[str, Built], num_words: int, *splits: str) -> set[tuple[str, ...]]:
    return {run for document in built.values() if document.split in splits for run in plain_ngrams(document.text, num_words)}


@given(rows=ROWS, num_words=st.integers(1, 4))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_run_of_evaluation_text_is_in_training_text(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, rows: list[tuple[str, str]], num_words: int
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("rows"))
    for split in {split for split, _ in rows}:
        chosen: list[dict[str, object]] = [{"text": text} for each, text in rows if each == split]
        (Path("texts") / split).mkdir(parents=True)
        write_json_lines(Path("texts") / split / "a.jsonl", chosen)
    unchecked = build_corpus(download(files(), validation_share=0.3), CORPUS)
    before = read_corpus(CORPUS)
    metrics = build_corpus(download(files(), validation_share=0.3, contamination_words=num_words), CORPUS)
    after = read_corpus(CORPUS)
    evaluation = runs_of(before, num_words, "validation", "test")
    held = {name: evaluation & set(plain_ngrams(one.text, num_words)) for name, one in before.items() if one.split == "train"}
    assert not evaluation & runs_of(after, num_words, "train")
    assert after == {name: one for name, one in before.items() if not held.get(name)}
    assert metrics["num_contaminated"] == len(before) - len(after)
    seen = set().union(*held.values())
    holders = [one for one in before.values() if one.split != "train" and seen & set(plain_ngrams(one.text, num_words))]
    assert metrics["num_evaluation_documents_in_training"] == len(holders)
    assert all(metrics[split] == unchecked[split] for split in ("validation", "test"))


def test_a_sentence_of_an_official_test_is_found_deep_inside_a_long_document(workspace: Path) -> None:
    generator = random.Random(0)  # noqa: S311 - words, no secrets
    words = [f"w{generator.randrange(10**6)}" for _ in range(30_000)]
    quoted = [word.upper() + "," for word in words[20_000:20_013]]
    texts: dict[str, str | bytes] = {
        "test/a.txt": "Before. " + " ".join(quoted) + " After.",
        "test/b.txt": "Nobody quotes this.",
        "train/long.txt": " ".join(words),
        "train/short.txt": " ".join(words[:20_012]),
        "train/almost.txt": " ".join(words[20_000:20_012]),
    }
    write_texts(workspace / "texts", texts)
    metrics = build_corpus(download(files(), validation_share=0.0, contamination_words=13), CORPUS)
    assert set(read_corpus(CORPUS)) == {"test/a.txt", "test/b.txt", "train/short.txt", "train/almost.txt"}
    assert (metrics["num_contaminated"], metrics["num_evaluation_documents_in_training"]) == (1, 1)


def test_documents_shorter_than_a_run_are_compared_whole(workspace: Path) -> None:
    texts: dict[str, str | bytes] = {"test/a.txt": "The Moon.", "train/b.txt": "the moon", "train/c.txt": "The moon orbits."}
    write_texts(workspace / "texts", texts)
    metrics = build_corpus(download(files(), validation_share=0.0, contamination_words=13), CORPUS)
    assert set(read_corpus(CORPUS)) == {"test/a.txt", "train/c.txt"}
    assert metrics["num_contaminated"] == 1


def test_null_checks_nothing_and_no_evaluation_text_is_no_error(workspace: Path) -> None:
    write_texts(workspace / "texts", {"test/a.txt": "a b c", "train/b.txt": "a b c d"})
    metrics = build_corpus(download(files(), validation_share=0.0), CORPUS)
    assert (metrics["num_documents"], metrics["num_contaminated"], metrics["num_evaluation_documents_in_training"]) == (2, 0, 0)
    section = download(files(patterns=("train/*",)), validation_share=0.0, test_share=0.0, contamination_words=2)
    assert build_corpus(section, CORPUS)["num_documents"] == 1
