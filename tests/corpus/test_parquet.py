"""Every Parquet file is read in bounded memory or refused in one line, damaged and hostile ones too."""

import os
import random
import resource
from pathlib import Path

import pyarrow
import pytest

from prosemill.confined import run_confined
from prosemill.corpus import build_corpus, parquet
from prosemill.corpus.frames import frame_headers, frame_text
from prosemill.corpus.parquet import parquet_rows, unpack
from prosemill.errors import ProsemillError
from prosemill.workspace import CORPUS
from tests.corpus.corpora import download, files, read_corpus, write_parquet


def rows_of(path: Path, text_key: str = "text", label_key: str | None = None) -> list[tuple[int, str | None, str | None, str]]:
    rows = parquet_rows(path, where=path.name, text_key=text_key, label_key=label_key)
    return [(row.index, row.own_id, row.label, row.text.decode()) for row in rows]


def repeated(text: str, number: int) -> pyarrow.Array:
    """The same text many times, made without holding it many times."""
    return pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * number, pyarrow.int32()), pyarrow.array([text]))


def test_rows_come_with_their_place_id_and_label(workspace: Path) -> None:
    columns = {"text": ["a", "b\r\n", None], "id": ["x", None, "z"], "topic": ["t", None, "u"], "junk": [[1], [2], [3]]}
    write_parquet(workspace / "a.parquet", columns, row_group_size=1)
    assert rows_of(workspace / "a.parquet", label_key="topic") == [(0, "x", "t", "a"), (1, None, None, "b\r\n"), (2, "z", "u", "")]


def test_a_corpus_of_parquet(workspace: Path) -> None:
    write_parquet(workspace / "texts" / "train-00000-of-00001.parquet", {"text": ["a", None, "c"], "stars": [1, 2, 3]})
    write_parquet(workspace / "texts" / "test-00000-of-00001.parquet", {"text": ["c", "d"], "stars": [4, 5], "id": [7, 8]})
    metrics = build_corpus(download(files(label_key="stars")), CORPUS)
    found = {name: (built.text, built.label, built.split) for name, built in read_corpus(CORPUS).items() if built.split != "validation"}
    assert found.pop("7") == ("c", "4", "test")
    assert found.pop("8") == ("d", "5", "test")
    assert set(found) <= {"train-00000-of-00001.parquet#0"}
    assert (metrics["num_empty"], metrics["num_exact_duplicates"], metrics["num_documents"]) == (1, 1, 3)


TEXT_TYPES = [pyarrow.string(), pyarrow.large_string(), pyarrow.string_view(), pyarrow.binary(), pyarrow.large_binary()]


@pytest.mark.parametrize("kind", [*TEXT_TYPES, pyarrow.dictionary(pyarrow.int8(), pyarrow.string())], ids=str)
def test_every_type_of_text_is_read(workspace: Path, kind: pyarrow.DataType) -> None:
    texts = ["plain", "ü😀", None, "plain"]
    column = pyarrow.array(texts, pyarrow.string())
    column = column.dictionary_encode() if pyarrow.types.is_dictionary(kind) else column.cast(kind)
    write_parquet(workspace / "a.parquet", {"text": column})
    unpack(workspace / "a.parquet", workspace / "rows", "a.parquet", "text", None, 1 << 20)
    with (workspace / "rows").open("rb") as file:
        assert [frame_text(file, offset, size).decode() for _, offset, size in frame_headers(file)] == ["plain", "ü😀", "", "plain"]


def broken(workspace: Path, match: str, text_key: str = "text", label_key: str | None = None) -> None:
    """Unpacking a.parquet fails so. In this process, which is quicker: only for files that Arrow itself wrote."""
    with pytest.raises(ProsemillError, match=match) as caught:
        unpack(workspace / "a.parquet", workspace / "rows", "a.parquet", text_key, label_key, 1 << 26)
    assert "\n" not in str(caught.value)


def hostile(workspace: Path, match: str) -> None:
    """Reading a.parquet in a confined child fails so and leaves nothing behind."""
    with pytest.raises(ProsemillError, match=match) as caught:
        rows_of(workspace / "a.parquet")
    assert "\n" not in str(caught.value)
    assert not list(Path(".shards").glob("unpacked-*"))


def test_missing_and_wrong_columns_are_named(workspace: Path) -> None:
    write_parquet(workspace / "a.parquet", {"body": ["a"], "number": [5], "list": [["a"]]})
    broken(workspace, r"a\.parquet has no `text`, only `body`, `number`, `list`")
    broken(workspace, r"a\.parquet has no `topic`, only `body`", text_key="body", label_key="topic")
    broken(workspace, r"a\.parquet: column `number` holds int64, not text", text_key="number")
    broken(workspace, r"a\.parquet: column `list` holds list<.*>, not text", text_key="list")
    broken(workspace, r"a\.parquet row 0: label `list` is a list", text_key="body", label_key="list")


def test_a_column_that_is_there_twice_is_refused(workspace: Path) -> None:
    table = pyarrow.table([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    pyarrow.parquet.write_table(table, workspace / "a.parquet")
    broken(workspace, r"a\.parquet has the column `text` twice")


def test_text_and_labels_that_are_not_utf8_are_refused(workspace: Path) -> None:
    wrong = pyarrow.array([b"ok", b"ab\xff"], pyarrow.binary())
    text = pyarrow.Array.from_buffers(pyarrow.string(), 2, wrong.buffers())
    write_parquet(workspace / "a.parquet", {"text": text})
    broken(workspace, r"a\.parquet row 1, `text` is not UTF-8 at byte 2 ")
    write_parquet(workspace / "a.parquet", {"text": ["a", "b"], "label": text})
    broken(workspace, r"a\.parquet is not readable Parquet \(.*UTF8", label_key="label")


def complaints(paths: list[Path]) -> list[str]:
    """What the reader says of each file; empty where it reads it."""
    found = []
    for path in paths:
        try:
            unpack(path, path.with_suffix(".rows"), path.name, "text", None, 1 << 24)
        except ProsemillError as error:
            found.append(str(error))
        else:
            found.append("")
    return found


def test_what_is_no_parquet_is_one_line(workspace: Path) -> None:
    contents = [b"", b"PAR1", b"PAR1" + b"\0" * 100 + b"PAR1", b"just some text, no Parquet at all", b"PAR1\xff\xff\xff\x7fPAR1"]
    paths = [workspace / f"{number}.parquet" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    found = run_confined(complaints, paths, memory_bytes=parquet.MEMORY_BYTES, seconds=60.0, preload=("pyarrow.parquet",))
    for number, complaint in enumerate(found):
        assert complaint.startswith(f"{number}.parquet is not readable Parquet (")
        assert "\n" not in complaint


def test_damaged_parquet_is_refused_or_read_but_never_a_stack_trace(workspace: Path) -> None:
    write_parquet(workspace / "whole.parquet", {"text": [f"text {index}" * 20 for index in range(500)]}, write_page_checksum=True)
    whole = (workspace / "whole.parquet").read_bytes()
    generator = random.Random(0)  # noqa: S311 - the same damage at every run
    paths = []
    for number in range(80):
        data = bytearray(whole)
        for _ in range(3):
            data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        paths.append(workspace / f"{number}.parquet")
        paths[-1].write_bytes(data[: generator.choice([len(data), len(data) // 2])])
    found = run_confined(complaints, paths, memory_bytes=parquet.MEMORY_BYTES, seconds=60.0, preload=("pyarrow.parquet",))
    assert not any("\n" in complaint for complaint in found)
    assert sum(bool(complaint) for complaint in found) > 60


def test_a_bomb_of_200_mb_is_stopped_by_the_budget(workspace: Path) -> None:
    write_parquet(workspace / "texts" / "a.parquet", {"text": repeated("a" * 100_000, 2000)}, compression="zstd")
    assert (workspace / "texts" / "a.parquet").stat().st_size < 30_000
    with pytest.raises(ProsemillError, match=r"texts/a\.parquet has .* bytes and unpacks to more than .*: it is hostile") as caught:
        build_corpus(download(files()), CORPUS)
    assert "\n" not in str(caught.value)
    assert not CORPUS.exists()
    assert sum(path.stat().st_size for path in Path(".shards").rglob("*") if path.is_file()) < 100_000


def test_a_bomb_of_rows_is_stopped_by_the_budget(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "FREE_BYTES", 1 << 20)
    write_parquet(workspace / "a.parquet", {"text": repeated("", 2_000_000)}, compression="zstd")
    hostile(workspace, r"unpacks to more than")


def test_a_bomb_of_8_gb_in_one_batch_is_stopped_by_the_memory_limit(workspace: Path) -> None:
    write_parquet(workspace / "a.parquet", {"text": repeated("a" * 2_000_000, 4000)}, compression="zstd")
    hostile(workspace, r"a\.parquet: reading it takes more than 1536 MiB of memory")
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 6 << 20, "KiB, of the largest child so far"


def test_an_ordinary_file_far_above_the_free_budget_is_read(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "FREE_BYTES", 0)
    texts = [os.urandom(2000).hex() for _ in range(1000)]
    write_parquet(workspace / "a.parquet", {"text": texts}, compression="zstd")
    assert [row[3] for row in rows_of(workspace / "a.parquet")] == texts
