from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prosemill.corpus import build as build_module
from prosemill.corpus import build_corpus
from prosemill.corpus import partition as partition_module
from prosemill.corpus.files import FilesSource
from prosemill.corpus.partition import MARKER, Limit, Partition, is_within, read_or_make_partition
from prosemill.digests import stable_share
from prosemill.workspace import CORPUS
from tests.corpus.corpora import download, files, read_corpus, tree_digests, write_texts


@given(ids=st.lists(st.text(max_size=2), max_size=60), size=st.integers(1, 20))
def test_the_limit_keeps_the_smallest_ids_in_any_order(ids: list[str], size: int) -> None:
    limit = Limit(size)
    admitted = [document_id for document_id in ids if limit.admits(document_id)]
    kept = [document_id for document_id in admitted if is_within(limit.threshold(), document_id)]
    smallest = set(sorted(set(ids), key=lambda document_id: stable_share(document_id, "limit"))[:size])
    assert kept == [document_id for document_id in ids if document_id in smallest]
    assert (limit.num_kept, limit.num_over) == (len(kept), len(ids) - len(kept))


def test_no_limit_keeps_everything() -> None:
    limit = Limit(None)
    assert all(limit.admits(str(number)) for number in range(100))
    assert (limit.threshold(), limit.num_kept, limit.num_over) == (None, 100, 0)


def make(fingerprint: str = "f") -> Partition:
    return read_or_make_partition(FilesSource(files()), fingerprint, num_shards=3, max_documents=None)


def test_a_whole_pass_is_used_again_and_a_broken_one_is_not(workspace: Path) -> None:
    write_texts(workspace / "texts", {f"{index}.txt": f"text {index}" for index in range(20)})
    first = make()
    write_texts(workspace / "texts", {"0.txt": "changed"})
    assert make() == first
    last = max(first.path(index) for index in range(3))
    last.write_bytes(last.read_bytes()[:-1])
    assert make() != first
    second = make()
    (Path(second.folder) / MARKER).unlink()
    (Path(second.folder) / "stray").touch()
    assert make() == second
    assert not (Path(second.folder) / "stray").exists()
    assert not list(Path(second.folder).glob("*.ids"))


def test_the_pass_of_another_corpus_is_removed(workspace: Path) -> None:
    write_texts(workspace / "texts", {"a.txt": "text"})
    first = make("one")
    make("two")
    assert not Path(first.folder).exists()


def test_a_changed_file_is_read_again(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_texts(workspace / "texts", {"a.txt": "text", "b.txt": "other"})

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build_module, "run_shards", killed)
        with pytest.raises(KeyboardInterrupt):
            build_corpus(download(files()), CORPUS)
    write_texts(workspace / "texts", {"a.txt": "mended"})
    build_corpus(download(files()), CORPUS)
    assert read_corpus(CORPUS)["a.txt"].text == "mended"


def test_the_size_of_the_buffer_changes_nothing(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_texts(workspace / "texts", {f"{index}.txt": f"text {index}" for index in range(50)})
    build_corpus(download(files()), CORPUS)
    before = tree_digests(CORPUS)
    monkeypatch.setattr(partition_module, "BUFFER_BYTES", 10)
    build_corpus(download(files()), CORPUS)
    assert tree_digests(CORPUS) == before
