"""How the source is cut into units of work changes nothing in the corpus, and what was read is not read again."""

import json
from pathlib import Path, PurePosixPath

import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prosemill.corpus import build as build_module
from prosemill.corpus import build_corpus, parquet, pieces, plan
from prosemill.corpus import units as units_module
from prosemill.corpus.files import FilesSource, FilesUnit
from prosemill.corpus.parquet import RowGroup
from prosemill.corpus.pieces import join_pieces, pieces_of
from prosemill.errors import ProsemillError
from prosemill.workspace import CORPUS
from tests.corpus.corpora import download, files, read_corpus, tree_digests, write_parquet, write_texts


def write_mixture(root: Path) -> None:
    """Every kind of file, each with texts that other files have too."""
    write_texts(root, {f"small/{index}.txt": f"text {index}" for index in range(40)})
    lines = [json.dumps({"text": f"text {index}"} if index % 5 else {"text": None}) for index in range(200)]
    write_texts(root, {"big.jsonl": "\xef\xbb\xbf".encode("latin-1") + "\n\n".join(lines).encode()})
    write_parquet(root / "big.parquet", {"text": [f"text {index}" for index in range(100, 300)]}, row_group_size=7)


def parquet_digests() -> dict[str, str]:
    """The corpus without its manifest, which names the units' digests."""
    return {name: digest for name, digest in tree_digests(CORPUS).items() if name.endswith(".parquet")}


@pytest.mark.parametrize("unit_bytes", [300, 2000])
def test_cutting_the_source_otherwise_changes_nothing(workspace: Path, monkeypatch: pytest.MonkeyPatch, unit_bytes: int) -> None:
    write_mixture(workspace / "texts")
    expected = build_corpus(download(files()), CORPUS)
    before = parquet_digests()
    monkeypatch.setattr(pieces, "UNIT_BYTES", unit_bytes)
    monkeypatch.setattr(pieces, "CHUNK", 64)
    groups = [RowGroup(7, 100, unit_bytes // 10)] * 28 + [RowGroup(4, 100, unit_bytes // 10)]
    monkeypatch.setattr(pieces, "row_groups", lambda *_, **__: groups)  # a confined child takes a second
    assert len(FilesSource(files()).units()) > 3
    metrics = build_corpus(download(files()), CORPUS)
    assert parquet_digests() == before
    assert metrics == expected
    assert (metrics["num_byte_order_marks"], metrics["num_empty"], metrics["num_documents"]) == (1, 40, 288)


@given(lines=st.lists(st.binary(max_size=6).map(lambda line: line.replace(b"\n", b"")), max_size=30), unit_bytes=st.integers(1, 40))
@settings(deadline=None)
def test_json_lines_are_cut_at_lines_and_nowhere_twice(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], unit_bytes: int
) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    data = b"\n".join(lines)
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "UNIT_BYTES", unit_bytes)
        patch.setattr(pieces, "CHUNK", 4)
        cut = list(pieces_of(path.parent, PurePosixPath("a.jsonl"), "a.jsonl"))
    stops = [len(data) if piece.stop is None else piece.stop for piece in cut]
    assert [piece.start for piece in cut] == [0, *stops[:-1]]
    assert stops[-1] == len(data)
    assert all(data[stop - 1 : stop] == b"\n" for stop in stops[:-1])
    assert [piece.first_row for piece in cut] == [data[: piece.start].count(b"\n") for piece in cut]
    assert all(piece.num_bytes <= unit_bytes + 7 for piece in cut)


def test_units_are_as_large_as_they_may_be(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "UNIT_BYTES", 10)
    write_texts(workspace, {name: "x" * size for name, size in {"a": 4, "b": 6, "c": 1, "d": 30, "e": 2, "f": 8}.items()})
    joined = join_pieces(piece for name in "abcdef" for piece in pieces_of(workspace, PurePosixPath(name), name))
    assert ["".join(piece.name.name for piece in unit) for unit in joined] == ["ab", "c", "d", "ef"]


def test_a_footer_is_read_in_a_child_and_not_believed(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(workspace / "a.parquet", {"text": ["a", "b", "c"]}, row_group_size=2)
    assert [group.num_rows for group in parquet.row_groups(workspace / "a.parquet", where="a.parquet")] == [2, 1]
    size = (workspace / "a.parquet").stat().st_size
    for lie in ([], [RowGroup(1, size, 1), RowGroup(1, size, 1)], [RowGroup(-1, 1, 1)]):
        monkeypatch.setattr(parquet, "run_confined", lambda *_, found=lie, **__: found)
        with pytest.raises(ProsemillError, match=r"a\.parquet is not readable Parquet \(the sizes in its footer cannot be\)"):
            parquet.row_groups(workspace / "a.parquet", where="a.parquet")


def stop_after_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Build, and be interrupted between the passes."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build_module, "plan_splits", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build_corpus(download(files()), CORPUS)


def test_what_was_read_is_not_read_again(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_texts(workspace / "texts", {"a.txt": "text", "b.txt": "other"})
    stop_after_reading(monkeypatch)
    monkeypatch.setattr(FilesUnit, "documents", None)
    build_corpus(download(files()), CORPUS)
    assert set(read_corpus(CORPUS)) == {"a.txt", "b.txt"}


def test_a_source_with_other_settings_is_read_again(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_texts(workspace / "texts", {"a.jsonl": '{"id": "a", "text": "one", "body": "two"}\n'})
    stop_after_reading(monkeypatch)
    build_corpus(download(files(text_key="body")), CORPUS)
    assert read_corpus(CORPUS)["a"].text == "two"


def test_a_changed_file_is_read_again(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_texts(workspace / "texts", {"a.txt": "text", "b.txt": "other"})
    stop_after_reading(monkeypatch)
    write_texts(workspace / "texts", {"a.txt": "mended"})
    build_corpus(download(files()), CORPUS)
    assert read_corpus(CORPUS)["a.txt"].text == "mended"


def test_the_sizes_of_runs_and_slices_change_nothing(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mixture(workspace / "texts")
    section = download(files(), near_duplicate_threshold=0.8, contamination_words=2, test_share=0.2)
    expected = build_corpus(section, CORPUS)
    before = parquet_digests()
    monkeypatch.setattr(units_module, "RUN_BYTES", 50)
    monkeypatch.setattr(plan, "SLICE_DOCUMENTS", 20)
    assert build_corpus(section, CORPUS) == expected
    assert parquet_digests() == before


def test_an_ambiguous_id_is_named_in_the_sources_order(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "UNIT_BYTES", 1)
    rows = {"a.jsonl": "one", "b.jsonl": "one", "c.jsonl": "two"}
    write_texts(workspace / "texts", {name: json.dumps({"id": 7, "text": text}) for name, text in rows.items()})
    with pytest.raises(ProsemillError, match=r"id '7' from a\.jsonl stands for another text in '7' from c\.jsonl"):
        build_corpus(download(files()), CORPUS)
    write_texts(workspace / "texts", {"c.jsonl": json.dumps({"id": 7, "text": "one"})})
    assert build_corpus(download(files()), CORPUS)["num_exact_duplicates"] == 2


def test_the_digest_of_the_documents_tells_every_change(workspace: Path) -> None:
    digests: set[str] = set()
    for texts in ({"a.txt": "one"}, {"a.txt": "two"}, {"b.txt": "two"}, {"b.txt": "two", "c.txt": " "}):
        root = f"texts{len(digests)}"
        write_texts(workspace / root, dict(texts))
        build_corpus(download(files(root)), CORPUS)
        digests.add(json.loads((CORPUS / "SOURCE.json").read_text())["sha256"])
    assert len(digests) == 4
    assert pyarrow.parquet.read_table(CORPUS / "train" / "shard-00000.parquet").num_rows <= 1
