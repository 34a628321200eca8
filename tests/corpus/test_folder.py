"""Nothing outside the folder that the user named is ever read, and nothing that is no plain file."""

import os
import stat
from pathlib import Path, PurePosixPath

import pytest

from prosemill.corpus import build_corpus
from prosemill.corpus.folder import list_files, open_regular, real_folder
from prosemill.errors import ProsemillError
from prosemill.workspace import CORPUS
from tests.corpus.corpora import download, files, read_corpus, write_texts


def listed(root: Path, *patterns: str) -> list[str]:
    return [name.as_posix() for name in list_files(root.resolve(), patterns)]


def test_globs_work_as_in_a_shell(tmp_path: Path) -> None:
    names = ("a.txt", "b.md", "sub/c.txt", "sub/deep/d.txt", ".hidden/e.txt", "sub/.f.txt", "sub/g.TXT", "[x].txt")
    write_texts(tmp_path, dict.fromkeys(names, "text"))
    assert listed(tmp_path, "**/*.txt") == ["[x].txt", "a.txt", "sub/c.txt", "sub/deep/d.txt"]
    assert listed(tmp_path, "*.txt") == ["[x].txt", "a.txt"]
    assert listed(tmp_path, "sub/**") == ["sub/c.txt", "sub/deep/d.txt", "sub/g.TXT"]
    assert listed(tmp_path, "sub/*.txt", "**/c.txt", "?.md") == ["b.md", "sub/c.txt"]
    assert listed(tmp_path, "**/deep/*") == ["sub/deep/d.txt"]
    assert listed(tmp_path, ".hidden/*", "sub/.*") == [".hidden/e.txt", "sub/.f.txt"]
    assert listed(tmp_path, "*.parquet") == []


def test_links_that_stay_inside_are_read(workspace: Path) -> None:
    write_texts(workspace / "texts", {"sub/a.txt": "text", "b.txt": "other"})
    (workspace / "texts" / "alias.txt").symlink_to("b.txt")
    (workspace / "texts" / "again").symlink_to("sub")
    (workspace / "texts" / "sub" / "loop").symlink_to("..")
    metrics = build_corpus(download(files()), CORPUS)
    assert set(read_corpus(CORPUS)) == {"sub/a.txt", "alias.txt"}
    assert metrics["num_exact_duplicates"] == 1


def test_hidden_folders_are_not_entered_unless_asked_for(tmp_path: Path) -> None:
    write_texts(tmp_path, {"a.txt": "text", "other/.git/b.txt": "text"})
    (tmp_path / ".cache").symlink_to("/etc")
    assert listed(tmp_path, "**/*.txt") == ["a.txt"]
    with pytest.raises(ProsemillError, match=r"\.cache is a link to /etc, outside"):
        listed(tmp_path, ".cache/*")


def test_a_root_that_is_itself_a_link_is_the_users_choice(workspace: Path) -> None:
    write_texts(workspace / "real", {"a.txt": "text"})
    (workspace / "texts").symlink_to("real")
    build_corpus(download(files()), CORPUS)
    assert set(read_corpus(CORPUS)) == {"a.txt"}


def refused(match: str, **settings: object) -> None:
    patterns = settings.get("patterns", ("**/*.txt",))
    root = settings.get("root", "texts")
    with pytest.raises(ProsemillError, match=match) as caught:
        build_corpus(download(files(str(root), patterns=patterns)), CORPUS)
    assert "\n" not in str(caught.value)
    assert not CORPUS.exists()


@pytest.mark.parametrize("target", ["/etc/passwd", "../secret.txt", "/proc/self/environ", "sub/../../secret.txt"])
def test_a_link_to_a_file_outside_is_refused(workspace: Path, target: str) -> None:
    write_texts(workspace, {"secret.txt": "secret", "texts/sub/b.txt": "text"})
    (workspace / "texts" / "a.txt").symlink_to(target)
    refused(r"texts/a\.txt is a link to .*, outside ")


def test_a_link_to_a_link_outside_is_refused(workspace: Path) -> None:
    write_texts(workspace, {"secret.txt": "secret", "texts/b.txt": "text"})
    (workspace / "texts" / "hop").symlink_to("../secret.txt")
    (workspace / "texts" / "a.txt").symlink_to("hop")
    refused(r"texts/a\.txt is a link to .*secret\.txt, outside ")


def test_a_link_to_a_folder_outside_is_refused(workspace: Path) -> None:
    write_texts(workspace, {"other/secret.txt": "secret", "texts/b.txt": "text"})
    (workspace / "texts" / "sub").symlink_to("../other")
    refused(r"texts/sub is a link to .*other, outside ")


def test_a_folder_whose_name_begins_like_the_roots_is_outside(workspace: Path) -> None:
    write_texts(workspace, {"texts-secret/a.txt": "secret", "texts/b.txt": "text"})
    (workspace / "texts" / "a.txt").symlink_to("../texts-secret/a.txt")
    refused("outside ")


@pytest.mark.parametrize("pattern", ["../*.txt", "/etc/passwd", "sub/../../*.txt", ""])
def test_a_pattern_that_leaves_the_root_is_refused(workspace: Path, pattern: str) -> None:
    write_texts(workspace, {"secret.txt": "secret", "texts/sub/b.txt": "text"})
    refused("leaves the root", patterns=(pattern,))


def test_a_pipe_is_refused_and_does_not_hang(workspace: Path) -> None:
    write_texts(workspace / "texts", {"b.txt": "text"})
    os.mkfifo(workspace / "texts" / "a.txt")
    with pytest.raises(ProsemillError, match=r"a\.txt is not a regular file"):
        list_files((workspace / "texts").resolve(), ("*.txt",))
    with pytest.raises(ProsemillError, match="not a regular file"):
        open_regular(workspace / "texts" / "a.txt")


def test_a_device_is_refused() -> None:
    assert stat.S_ISCHR(Path("/dev/zero").stat().st_mode)
    with pytest.raises(ProsemillError, match="not a regular file"):
        open_regular(Path("/dev/zero"))


def test_a_link_to_nothing_is_refused(workspace: Path) -> None:
    write_texts(workspace / "texts", {"b.txt": "text"})
    (workspace / "texts" / "a.txt").symlink_to("gone.txt")
    refused(r"a\.txt is a link to nothing")


def test_a_name_that_is_not_utf8_is_refused(workspace: Path) -> None:
    write_texts(workspace / "texts", {"b.txt": "text"})
    Path(os.fsdecode(os.fsencode(workspace / "texts") + b"/\xff.txt")).touch()
    refused("the file's name is not UTF-8; rename it")


def test_a_name_with_a_line_break_is_an_id_like_any_other(workspace: Path) -> None:
    write_texts(workspace / "texts", {"a\nb.txt": "text"})
    build_corpus(download(files()), CORPUS)
    assert set(read_corpus(CORPUS)) == {"a\nb.txt"}


def test_a_missing_root_and_a_root_that_is_a_file(workspace: Path) -> None:
    refused(r"`download\.corpus\.root`: nowhere does not exist", root="nowhere")
    (workspace / "file").touch()
    refused(r"`download\.corpus\.root`: file is not a folder", root="file")


def test_patterns_that_match_nothing_are_named(workspace: Path) -> None:
    write_texts(workspace / "texts", {"b.txt": "text"})
    refused(r"no file below texts matches \*\.md, \*\.rst", patterns=("*.md", "*.rst"))
    refused(r"no file below texts matches the empty list of patterns", patterns=())


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProsemillError, match=r"gone\.txt cannot be read \(No such file or directory\)"):
        open_regular(tmp_path / "gone.txt")


def test_the_boundary_may_be_wider_than_the_root(tmp_path: Path) -> None:
    write_texts(tmp_path, {"blobs/1": "text", "outside": "text"})
    root = tmp_path.resolve() / "snapshots"
    root.mkdir()
    (root / "a.txt").symlink_to("../blobs/1")
    assert list_files(root, ("*",), tmp_path.resolve()) == [PurePosixPath("a.txt")]
    with pytest.raises(ProsemillError, match="outside"):
        list_files(root, ("*",))


def test_a_home_folder_may_be_written_short(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(workspace))
    (workspace / "texts").mkdir()
    assert real_folder("~/texts", "root") == (workspace / "texts").resolve()
