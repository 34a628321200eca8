"""WikiText's files and rows become one document per article, byte for byte."""

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from prosemill.corpus import build_corpus
from prosemill.errors import ProsemillError
from prosemill.params import HubCorpus
from prosemill.workspace import CORPUS
from tests.corpus.corpora import download, files, read_corpus, write_texts

ARTICLES = [
    " \n = One = \n \n First , it 's said . \n \n = = Part = = \n \n More . \n \n",
    " = Two <unk> = \n \n Second . \n \n",
    " = Three = \n \n Third ü . \n",
]


def test_a_file_of_articles_keeps_every_byte_and_its_split(workspace: Path) -> None:
    write_texts(workspace / "texts", {"wiki.train.tokens": "".join(ARTICLES), "wiki.valid.tokens": ARTICLES[1].replace("Second", "2nd")})
    metrics = build_corpus(download(files(patterns=("*.tokens",), format="wikitext")), CORPUS)
    built = read_corpus(CORPUS)
    assert [built[f"wiki.train.tokens#{number}"].text for number in range(3)] == ARTICLES
    assert built["wiki.train.tokens#1"].label == "Two <unk>"
    assert built["wiki.valid.tokens#0"].split == "validation"
    assert metrics["num_documents"] == 4
    assert metrics["name"] == "texts"


def test_a_byte_order_mark_hides_no_title(workspace: Path) -> None:
    write_texts(workspace / "texts", {"wiki.train.tokens": b"\xef\xbb\xbf" + ARTICLES[1].encode()})
    metrics = build_corpus(download(files(patterns=("*.tokens",), format="wikitext")), CORPUS)
    document = read_corpus(CORPUS)["wiki.train.tokens#0"]
    assert (document.text, document.label, metrics["num_byte_order_marks"]) == (ARTICLES[1], "Two <unk>", 1)


def test_json_lines_are_no_articles(workspace: Path) -> None:
    write_texts(workspace / "texts", {"wiki.jsonl": '{"text": " = One = "}\n'})
    with pytest.raises(
        ProsemillError, match=r"wiki\.jsonl is JSON Lines, whose rows are documents: set `download\.corpus\.format` to plain$"
    ):
        build_corpus(download(files(patterns=("*.jsonl",), format="wikitext")), CORPUS)


def test_rows_of_the_hub_are_joined(workspace: Path) -> None:
    folder = workspace / "hub/wikitext-2-raw-v1"
    folder.mkdir(parents=True)
    lines = [line if line.strip() else "" for line in "".join(ARTICLES).splitlines(keepends=True)]
    pyarrow.parquet.write_table(pyarrow.table({"text": lines}), folder / "train-00000-of-00001.parquet")
    corpus = HubCorpus(source="hub", name="wikitext2", repository="hub", configuration="wikitext-2-raw-v1", format="wikitext")
    build_corpus(download(corpus), CORPUS)
    built = read_corpus(CORPUS)
    name = "wikitext-2-raw-v1/train-00000-of-00001.parquet"
    assert "".join(built[f"{name}#{number}"].text for number in range(3)) == "".join(lines)
    assert built[f"{name}#2"].label == "Three"


def test_an_article_that_is_not_utf8_is_named_by_its_place(workspace: Path) -> None:
    write_texts(workspace / "texts", {"wiki.train.tokens": ARTICLES[2].encode() + b" = Four = \n \n \xff \n"})
    offset = len(ARTICLES[2].encode()) + len(b" = Four = \n \n ")
    with pytest.raises(ProsemillError, match=rf"texts/wiki\.train\.tokens is not UTF-8 at byte {offset}"):
        build_corpus(download(files(patterns=("*.tokens",), format="wikitext")), CORPUS)
