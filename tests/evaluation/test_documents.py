"""Passages keep the text as it is and never mix prompt and reference; what is missing or broken is said in one line."""

import json
from pathlib import Path

import pytest

from prosemill.errors import ProsemillError
from prosemill.evaluation.documents import Document, Passage, choose_passages, read_source, read_split
from tests.evaluation.corpus import write_corpus


def test_prompt_and_reference_are_the_documents_own_text() -> None:
    text = " One\ttwo\n\nthree  four five six seven"
    ((passage,), num_too_short) = choose_passages([Document("a", text)], num_prompts=9, prompt_words=3, continuation_words=2)
    assert passage == Passage("a", " One\ttwo\n\nthree", "four five")
    assert text.startswith(passage.prompt)
    assert num_too_short == 0


def test_short_documents_are_passed_over_and_counted() -> None:
    documents = [Document(str(index), " ".join("abcdefgh"[:length])) for index, length in enumerate([4, 3, 8, 0, 5])]
    passages, num_too_short = choose_passages(documents, num_prompts=2, prompt_words=2, continuation_words=2)
    assert [passage.document_id for passage in passages] == ["0", "2"]
    assert num_too_short == 2


def test_no_long_document_is_an_error() -> None:
    with pytest.raises(ProsemillError, match="prompt_words"):
        choose_passages([Document("a", "one two")], num_prompts=1, prompt_words=2, continuation_words=1)


def test_bytes_and_words_are_of_the_original_text() -> None:
    document = Document("a", "né  à\r\n中文 😀")
    assert (document.num_bytes, document.num_words) == (len("né  à\r\n中文 😀".encode()), 4)


def test_documents_come_in_the_manifests_order_and_the_digest_names_the_split(tmp_path: Path) -> None:
    write_corpus(tmp_path / "one", {"test": [["a b", "c"], [], ["d"]], "train": [["x"]]})
    write_corpus(tmp_path / "two", {"test": [["a b", "c"], [], ["d"]], "train": [["y"]]})
    write_corpus(tmp_path / "three", {"test": [["a b", "c"], [], ["e"]], "train": [["x"]]})
    documents, data = read_split(tmp_path / "one", "test", None)
    assert [document.text for document in documents] == ["a b", "c", "d"]
    assert (data["num_documents"], data["num_documents_in_split"]) == (3, 3)
    assert data["digest"] == read_split(tmp_path / "two", "test", None)[1]["digest"]
    assert data["digest"] != read_split(tmp_path / "three", "test", None)[1]["digest"]
    first, limited = read_split(tmp_path / "one", "test", 2)
    assert first == documents[:2]
    assert limited == {"split": "test", "digest": data["digest"], "num_documents": 2, "num_documents_in_split": 3}


def test_what_is_missing_or_broken_is_one_line(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    with pytest.raises(ProsemillError, match=r"MANIFEST\.jsonl is missing"):
        read_split(corpus, "test", None)
    write_corpus(corpus, {"test": [["a"]]})
    shard = corpus / "test/shard-00000.parquet"
    shard.write_bytes(b"PAR1 cut off")
    with pytest.raises(ProsemillError, match="not a readable Parquet file"):
        read_split(corpus, "test", None)
    shard.unlink()
    with pytest.raises(ProsemillError, match=r"shard-00000\.parquet is missing"):
        read_split(corpus, "test", None)
    write_corpus(corpus, {"test": [[""], []]})
    with pytest.raises(ProsemillError, match="has no text"):
        read_split(corpus, "test", None)
    with pytest.raises(ProsemillError, match=r"SOURCE\.json is missing"):
        read_source(tmp_path)
    (tmp_path / "SOURCE.json").write_text("{")
    with pytest.raises(ProsemillError, match="is not JSON"):
        read_source(tmp_path)
    (tmp_path / "SOURCE.json").write_text(json.dumps({"license": "MIT"}))
    assert read_source(tmp_path) == {"license": "MIT"}
