"""A corpus holds every text once, byte for byte, in the split it belongs to; whatever is not kept is counted."""

import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prosemill.corpus import build_corpus
from prosemill.corpus.shard import ROW_GROUP_DOCUMENTS
from prosemill.digests import sha256_of_file, stable_share
from prosemill.errors import ProsemillError
from prosemill.shards import read_manifest
from prosemill.workspace import CORPUS, SPLITS
from tests.conftest import write_json_lines
from tests.corpus.corpora import download, files, read_corpus, tree_digests, write_texts
from tests.corpus.killing import leftovers

TEXTS = {
    "one character": "x",
    "emoji": "👩‍👩‍👧‍👦 🇺🇳 é é",
    "windows": "line\r\nline\r\n\r\n",
    "old mac": "line\rline",
    "long line": "word " * 210_000,
    "arabic": "السلام عليكم\nوبركاته",
    "chinese": "你好，世界。\u3000\n",
    "nul": "a\0b\0",
    "separators": "a\x0b\x0c\x1c\x85\u2028\u2029b",
    "inner mark": "a\ufeffb",
    "leading space": "  \n text \t",
    "special token": "a<|endoftext|>b</s>",
    "astral": "\U0010ffff\U00010000",
    "frames": '[5, "x"]\n[0]\n',
}


def many(number: int) -> dict[str, str | bytes]:
    return {f"{index:04}.txt": f"Document number {index}, nothing else.\n" for index in range(number)}


def test_text_of_every_kind_survives_in_plain_files(workspace: Path) -> None:
    write_texts(workspace / "texts", {f"{name}.txt": text for name, text in TEXTS.items()})
    metrics = build_corpus(download(files()), CORPUS)
    assert {name: built.text for name, built in read_corpus(CORPUS).items()} == {f"{name}.txt": text for name, text in TEXTS.items()}
    assert metrics["num_text_bytes"] == sum(len(text.encode()) for text in TEXTS.values())


@pytest.mark.parametrize("ensure_ascii", [True, False])
def test_text_of_every_kind_survives_in_json_lines(workspace: Path, *, ensure_ascii: bool) -> None:
    lines = [json.dumps({"id": name, "text": text}, ensure_ascii=ensure_ascii) for name, text in TEXTS.items()]
    write_texts(workspace / "texts", {"a.jsonl": "\r\n".join(lines)})
    build_corpus(download(files()), CORPUS)
    assert {name: built.text for name, built in read_corpus(CORPUS).items()} == TEXTS


def test_text_of_every_kind_survives_in_parquet(workspace: Path) -> None:
    (workspace / "texts").mkdir()
    table = pyarrow.table({"id": list(TEXTS), "text": list(TEXTS.values())})
    pyarrow.parquet.write_table(table, workspace / "texts" / "a.parquet")
    build_corpus(download(files()), CORPUS)
    assert {name: built.text for name, built in read_corpus(CORPUS).items()} == TEXTS


def test_empty_documents_are_dropped_and_counted(workspace: Path) -> None:
    blank = {"empty.txt": "", "spaces.txt": " \n\t", "ideographic.txt": "\u3000\u00a0", "long.txt": "\u3000" * 400_000}
    write_texts(workspace / "texts", {**blank, "late.txt": " " * 1_100_000 + "x"})
    metrics = build_corpus(download(files()), CORPUS)
    assert list(read_corpus(CORPUS)) == ["late.txt"]
    assert metrics["num_empty"] == 4


def test_the_output_keeps_its_contract(workspace: Path) -> None:
    write_texts(workspace / "texts", many(60) | {"copy.txt": "Document number 7, nothing else.\n"})
    metrics = build_corpus(download(files(license="CC0-1.0", attribution="me"), num_shards=3), CORPUS)
    built = read_corpus(CORPUS)
    rows = read_manifest(CORPUS)
    assert [row["file"] for row in rows] == sorted(f"{split}/shard-{index:05}.parquet" for split in SPLITS for index in range(3))
    for row in rows:
        table = pyarrow.parquet.read_table(CORPUS / row["file"])
        ids = table["document_id"].to_pylist()
        assert table.schema.names == ["document_id", "text", "source", "label"]
        assert all(field.type == pyarrow.string() for field in table.schema)
        assert ids == sorted(ids, key=lambda document_id: stable_share(document_id, "order"))
        assert row["num_documents"] == len(ids)
        assert row["num_text_bytes"] == sum(len(built[document_id].text.encode()) for document_id in ids)
        assert row["sha256"] == sha256_of_file(CORPUS / row["file"])
    splits = Counter(document.split for document in built.values())
    assert all(metrics[split]["num_documents"] == splits[split] for split in SPLITS)
    assert metrics["num_documents"] == len(built) == 60
    assert (metrics["num_exact_duplicates"], metrics["num_empty"], metrics["num_over_limit"]) == (1, 0, 0)
    source = json.loads((CORPUS / "SOURCE.json").read_text())
    assert (source["source"], source["license"], source["attribution"], source["num_files"]) == ("files", "CC0-1.0", "me", 61)
    assert leftovers() == []


def test_row_groups_are_bounded_and_texts_stay_with_their_ids(workspace: Path) -> None:
    number = ROW_GROUP_DOCUMENTS + 10
    rows: list[dict[str, object]] = [{"id": f"n{index}", "text": f"text {index}"} for index in range(number)]
    (workspace / "texts").mkdir()
    write_json_lines(workspace / "texts" / "a.jsonl", rows)
    build_corpus(download(files(), num_shards=1, validation_share=0.0, test_share=0.0), CORPUS)
    file = pyarrow.parquet.ParquetFile(CORPUS / "train" / "shard-00000.parquet")
    assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == [ROW_GROUP_DOCUMENTS, 10]
    assert {name: built.text for name, built in read_corpus(CORPUS).items()} == {f"n{index}": f"text {index}" for index in range(number)}


def test_a_large_document_does_not_swell_a_row_group(workspace: Path) -> None:
    write_texts(workspace / "texts", {f"{index}.txt": str(index) * 5_000_000 for index in range(4)})
    build_corpus(download(files(), num_shards=1, validation_share=0.0, test_share=0.0), CORPUS)
    assert pyarrow.parquet.ParquetFile(CORPUS / "train" / "shard-00000.parquet").num_row_groups == 4


def test_the_same_bytes_for_any_number_of_workers_and_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prose: list[str]) -> None:
    trees = []
    for place, workers in (("here", "1"), ("elsewhere", "2")):
        folder = tmp_path / place
        folder.mkdir()
        monkeypatch.chdir(folder)
        monkeypatch.setenv("PROSEMILL_WORKERS", workers)
        write_texts(folder / "texts", {f"{index}.md": text for index, text in enumerate(prose)})
        build_corpus(download(files()), CORPUS)
        trees.append(tree_digests(CORPUS))
    assert trees[0] == trees[1]
    assert len(trees[0]) == 2 * 3 + 2


def test_a_growing_corpus_moves_nobody(workspace: Path) -> None:
    texts = many(80)
    write_texts(workspace / "texts", {name: text for name, text in texts.items() if int(name[:4]) % 3})
    build_corpus(download(files(), validation_share=0.2, test_share=0.2), CORPUS)
    before = read_corpus(CORPUS)
    write_texts(workspace / "texts", texts)
    build_corpus(download(files(), validation_share=0.2, test_share=0.2), CORPUS)
    after = read_corpus(CORPUS)
    assert len(before) < len(after) == 80
    assert {name: after[name] for name in before} == before
    assert {built.split for built in before.values()} == set(SPLITS)


def test_shares_are_kept_on_the_whole(workspace: Path) -> None:
    (workspace / "texts").mkdir()
    write_json_lines(workspace / "texts" / "a.jsonl", [{"text": f"text {index}"} for index in range(4000)])
    metrics = build_corpus(download(files(), validation_share=0.1, test_share=0.05), CORPUS)
    assert metrics["validation"]["num_documents"] == pytest.approx(400, abs=80)
    assert metrics["test"]["num_documents"] == pytest.approx(200, abs=60)


def test_official_splits_are_kept_and_their_test_text_is_never_trained_on(workspace: Path) -> None:
    texts: dict[str, str | bytes] = {
        "a/early.txt": "in the test too",
        "dev/early.txt": "in the test too",
        "dev/held.txt": "held",
        "test/late.txt": "in the test too",
        "train/early.txt": "held",
        "train/own.txt": "mine",
        "loose.txt": "loose",
    }
    write_texts(workspace / "texts", texts)
    metrics = build_corpus(download(files()), CORPUS)
    splits = {name: built.split for name, built in read_corpus(CORPUS).items()}
    assert splits == {"dev/held.txt": "validation", "test/late.txt": "test", "train/own.txt": "train", "loose.txt": "train"}
    assert metrics["num_exact_duplicates"] == 3
    assert json.loads((CORPUS / "SOURCE.json").read_text())["official_splits"] == ["test", "train", "validation"]


def test_missing_official_splits_are_carved_from_train_by_the_id(workspace: Path) -> None:
    texts: dict[str, str | bytes] = {f"train/{name}": text for name, text in many(200).items()}
    write_texts(workspace / "texts", texts | {"test/a.txt": "official"})
    build_corpus(download(files(), validation_share=0.2, test_share=0.2), CORPUS)
    splits: dict[str, list[str]] = {split: [] for split in SPLITS}
    for name, built in read_corpus(CORPUS).items():
        splits[built.split].append(name)
    assert splits["test"] == ["test/a.txt"]
    assert len(splits["validation"]) == pytest.approx(40, abs=20)


def test_the_first_of_equal_documents_stays(workspace: Path) -> None:
    write_texts(workspace / "texts", {"b.txt": "same", "a.txt": "same", "c.txt": "same", "d.txt": "other"})
    metrics = build_corpus(download(files(), num_shards=5), CORPUS)
    assert set(read_corpus(CORPUS)) == {"a.txt", "d.txt"}
    assert metrics["num_exact_duplicates"] == 2


def test_almost_equal_documents_both_stay(workspace: Path) -> None:
    write_texts(workspace / "texts", {"a.txt": "same", "b.txt": "same\n", "c.txt": "Same"})
    assert build_corpus(download(files()), CORPUS)["num_documents"] == 3


def test_one_id_for_two_texts_is_an_error_and_for_one_text_a_duplicate(workspace: Path) -> None:
    (workspace / "texts").mkdir()
    write_json_lines(workspace / "texts" / "a.jsonl", [{"id": 7, "text": "one"}, {"id": 8, "text": "two"}])
    write_json_lines(workspace / "texts" / "b.jsonl", [{"id": 7, "text": "one"}])
    metrics = build_corpus(download(files()), CORPUS)
    assert (metrics["num_documents"], metrics["num_exact_duplicates"]) == (2, 1)
    write_json_lines(workspace / "texts" / "b.jsonl", [{"id": 7, "text": "one"}, {"id": "8", "text": "other"}])
    with pytest.raises(ProsemillError, match=r"id '8' from a\.jsonl stands for another text in '8' from b\.jsonl") as caught:
        build_corpus(download(files()), CORPUS)
    assert "\n" not in str(caught.value)


def test_max_documents_keeps_the_smallest_hashes_and_counts_the_rest(workspace: Path) -> None:
    write_texts(workspace / "texts", many(100))
    metrics = build_corpus(download(files(max_documents=30)), CORPUS)
    expected = sorted(many(100), key=lambda name: stable_share(name, "limit"))[:30]
    assert set(read_corpus(CORPUS)) == set(expected)
    assert metrics["num_over_limit"] == 70
    assert build_corpus(download(files(max_documents=100)), CORPUS)["num_over_limit"] == 0


def test_max_documents_still_leaves_every_split_its_share(workspace: Path) -> None:
    (workspace / "texts").mkdir()
    write_json_lines(workspace / "texts" / "a.jsonl", [{"text": f"text {index}"} for index in range(5000)])
    metrics = build_corpus(download(files(max_documents=500), validation_share=0.2, test_share=0.2), CORPUS)
    assert metrics["test"]["num_documents"] == pytest.approx(100, abs=40)
    assert metrics["train"]["num_documents"] == pytest.approx(300, abs=50)


def test_everything_that_was_read_is_kept_or_counted(workspace: Path) -> None:
    rows: list[dict[str, object]] = [{"text": "" if index % 7 == 0 else f"text {index % 50}"} for index in range(300)]
    (workspace / "texts").mkdir()
    write_json_lines(workspace / "texts" / "a.jsonl", rows)
    metrics = build_corpus(download(files(max_documents=200)), CORPUS)
    assert metrics["num_over_limit"] > 0
    assert metrics["num_exact_duplicates"] > 0
    counted = ("num_documents", "num_exact_duplicates", "num_empty", "num_over_limit")
    assert sum(metrics[count] for count in counted) == 300


@given(
    rows=st.lists(st.tuples(st.sampled_from([None, "train", "validation", "test"]), st.text("ab ", max_size=2)), min_size=1, max_size=25),
    num_shards=st.integers(1, 4),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_text_is_in_two_splits_and_none_is_lost(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, rows: list[tuple[str | None, str]], num_shards: int
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    monkeypatch.chdir(folder)
    for split in {split for split, _ in rows}:
        chosen: list[dict[str, object]] = [{"text": text} for each, text in rows if each == split]
        write_json_lines(_parent(folder / "texts" / (split or "other") / "a.jsonl"), chosen)
    texts = {text for _, text in rows if text.strip()}
    if not texts:
        with pytest.raises(ProsemillError, match="the corpus is empty"):
            build_corpus(download(files(), num_shards=num_shards), CORPUS)
        return
    metrics = build_corpus(download(files(), num_shards=num_shards), CORPUS)
    built = read_corpus(CORPUS)
    assert sorted(document.text for document in built.values()) == sorted(texts)
    held_out = {text: split for split, text in rows if split == "validation"} | {text: split for split, text in rows if split == "test"}
    assert all(document.split == held_out.get(document.text, document.split) for document in built.values())
    assert metrics["num_documents"] + metrics["num_exact_duplicates"] + metrics["num_empty"] == len(rows)


def _parent(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_an_empty_corpus_is_an_error(workspace: Path) -> None:
    write_texts(workspace / "texts", {"a.txt": " \n"})
    with pytest.raises(ProsemillError, match="the corpus is empty: 1 documents"):
        build_corpus(download(files()), CORPUS)
    assert not CORPUS.exists()


def test_a_failed_build_leaves_nothing_that_the_next_one_trusts(workspace: Path) -> None:
    write_texts(workspace / "texts", {"a.txt": "fine", "z.txt": b"\xff"})
    with pytest.raises(ProsemillError, match="not UTF-8"):
        build_corpus(download(files()), CORPUS)
    write_texts(workspace / "texts", {"z.txt": "mended"})
    build_corpus(download(files()), CORPUS)
    assert {built.text for built in read_corpus(CORPUS).values()} == {"fine", "mended"}
    assert leftovers() == []
