"""Files are read as they are, or refused in one line that names the file, the place and the remedy."""

import json
from pathlib import Path
from typing import Any

import pytest

from prosemill.corpus import build_corpus, document
from prosemill.errors import ProsemillError
from prosemill.workspace import CORPUS
from tests.corpus.corpora import download, files, read_corpus, write_texts

BAD_LINES = [
    (b'{"text": "a"', r"texts/a\.jsonl line 2 is not JSON: .* at column"),
    (b'["a"]', r"texts/a\.jsonl line 2 is a list, not an object"),
    (b'"a"', r"texts/a\.jsonl line 2 is a text, not an object"),
    (b'{"body": "a", "title": "b"}', r"texts/a\.jsonl line 2 has no `text`, only `body`, `title`"),
    (b"{}", r"texts/a\.jsonl line 2 has no `text`, only none"),
    (b'{"text": 5}', r"texts/a\.jsonl line 2: `text` is a number, not text"),
    (b'{"text": ["a"]}', r"texts/a\.jsonl line 2: `text` is a list, not text"),
    (b'{"text": true}', r"texts/a\.jsonl line 2: `text` is true or false, not text"),
    (b'{"text": "a", "id": {}}', r"texts/a\.jsonl line 2: `id` is an object; an id is a text or a whole number"),
    (b'{"text": "a", "id": 1.5}', r"texts/a\.jsonl line 2: `id` is a number; an id is a text or a whole number"),
    (b'{"text": "ab\\ud800c"}', r"texts/a\.jsonl line 2, `text`: character 2 is the lone surrogate \\ud800"),
    (b'{"text": "a", "id": "\\udfff"}', r"texts/a\.jsonl line 2, `id`: character 0 is the lone surrogate"),
    (b'{"text": "a\xff"}', r"texts/a\.jsonl is not UTF-8 at byte 29 \(invalid start byte\)"),
    (b"[" * 100_000, r"texts/a\.jsonl line 2 is not JSON that can be read"),
    (b'{"text": ' + b"9" * 5000 + b"}", r"texts/a\.jsonl line 2 is not JSON that can be read"),
]


def fails(workspace: Path, match: str, **settings: Any) -> None:
    with pytest.raises(ProsemillError, match=match) as caught:
        build_corpus(download(files(**settings)), CORPUS)
    assert "\n" not in str(caught.value)
    assert not (workspace / CORPUS).exists()


@pytest.mark.parametrize(("line", "match"), BAD_LINES)
def test_a_bad_line_is_named(workspace: Path, line: bytes, match: str) -> None:
    write_texts(workspace / "texts", {"a.jsonl": b'{"text": "fine"}\r\n' + line + b"\n"})
    fails(workspace, match)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"abc\xffdef", r"texts/a\.txt is not UTF-8 at byte 3 \(invalid start byte\)"),
        ("ü".encode() + b"\xe4hm", r"texts/a\.txt is not UTF-8 at byte 2 "),
        (b"x" * 1_048_575 + "ü".encode() * 10 + b"\xc3", r"texts/a\.txt is not UTF-8 at byte 1048595 \(unexpected end of data\)"),
        (b"\xed\xa0\x80", r"texts/a\.txt is not UTF-8 at byte 0"),
        ("hello".encode("utf-16"), r"texts/a\.txt is not UTF-8 at byte 0 .* it looks like UTF-16"),
        (b"\x80" * 2_000_000, r"texts/a\.txt is not UTF-8 at byte 0"),
    ],
)
def test_a_file_that_is_not_utf8_is_named_with_the_offset(workspace: Path, data: bytes, match: str) -> None:
    write_texts(workspace / "texts", {"a.txt": data})
    fails(workspace, match)


def test_characters_across_the_borders_of_checking_survive(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "CHECK_BYTES", 5)
    texts: dict[str, str | bytes] = {f"{index}.txt": "a" * index + "ü€😀" * 9 for index in range(8)}
    write_texts(workspace / "texts", texts)
    build_corpus(download(files()), CORPUS)
    assert {name: built.text for name, built in read_corpus(CORPUS).items()} == texts


def test_a_document_too_long_is_refused(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("document", "files"):
        monkeypatch.setattr(f"prosemill.corpus.{module}.MAX_DOCUMENT_BYTES", 1 << 20)
    write_texts(workspace / "texts", {"a.txt": "x" * ((1 << 20) + 1)})
    fails(workspace, r"texts/a\.txt has more than 1 MiB")
    write_texts(workspace / "texts", {"a.txt": "x", "b.jsonl": json.dumps({"text": "y" * (1 << 20)})})
    fails(workspace, r"texts/b\.jsonl line 1 has more than 1 MiB")


def test_a_mark_at_the_start_is_dropped_and_counted(workspace: Path) -> None:
    mark = b"\xef\xbb\xbf"
    row = mark + b'{"text": "row"}\n'
    write_texts(workspace / "texts", {"a.txt": mark + b"text", "b.jsonl": row, "c.txt": b"plain", "d.txt": mark})
    metrics = build_corpus(download(files()), CORPUS)
    assert {name: built.text for name, built in read_corpus(CORPUS).items()} == {"a.txt": "text", "b.jsonl#1": "row", "c.txt": "plain"}
    assert (metrics["num_byte_order_marks"], metrics["num_empty"]) == (3, 1)


def test_ids_labels_and_sources(workspace: Path) -> None:
    lines = [
        {"text": "first", "kind": "a"},
        {"text": "second", "kind": None, "id": 12},
        {"text": "third", "kind": 3, "document_id": "own", "id": "not this"},
        {"text": "fourth", "kind": True, "id": None},
        {"text": None, "kind": "x"},
    ]
    text = "\n\n".join(json.dumps(line) for line in lines)
    write_texts(workspace / "texts", {"sub/rows.NDJSON": text})
    metrics = build_corpus(download(files(patterns=("**/*",), label_key="kind")), CORPUS)
    source = "sub/rows.NDJSON"
    found = {name: (built.text, built.source, built.label) for name, built in read_corpus(CORPUS).items()}
    assert found == {
        "sub/rows.NDJSON#1": ("first", source, "a"),
        "12": ("second", source, None),
        "own": ("third", source, "3"),
        "sub/rows.NDJSON#7": ("fourth", source, "true"),
    }
    assert metrics["num_empty"] == 1


def test_a_missing_label_is_named(workspace: Path) -> None:
    write_texts(workspace / "texts", {"a.jsonl": '{"text": "a", "topic": "b"}'})
    fails(workspace, r"line 1 has no `topci`, only `text`, `topic`", label_key="topci")


def test_json_is_refused_with_a_remedy(workspace: Path) -> None:
    write_texts(workspace / "texts", {"a.json": "[]"})
    fails(workspace, r"texts/a\.json is JSON, which is not read: save it as JSON Lines", patterns=("*.json",))


def test_other_text_keys(workspace: Path) -> None:
    write_texts(workspace / "texts", {"a.jsonl": '{"body": "text"}'})
    build_corpus(download(files(text_key="body")), CORPUS)
    assert read_corpus(CORPUS)["a.jsonl#1"].text == "text"
