"""Who may ask: keys from the environment or a file.

    keys = Keys.read(os.environ)
    keys.are_asked and keys.hold(b"secret")

`PROSEMILL_API_KEYS` holds keys with commas between them; `PROSEMILL_API_KEYS_FILE` names a file with one on each line, which is read again
when it changes: a key that is taken out of it is revoked at once.
"""

import hashlib
import hmac
from collections.abc import Mapping
from pathlib import Path

from prosemill.errors import ProsemillError

VARIABLE, FILE_VARIABLE = "PROSEMILL_API_KEYS", "PROSEMILL_API_KEYS_FILE"
SHORTEST = 16
"""Characters of a key: fewer could be guessed."""


class Keys:
    """Digests of the keys; the keys themselves are not kept."""

    def __init__(self, keys: frozenset[bytes], file: Path | None) -> None:
        self._fixed, self._file = keys, file
        self._of_file: frozenset[bytes] = frozenset()
        self._seen: tuple[int, int] | None = None

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> "Keys":
        """The keys that the environment names.

        Raises:
            ProsemillError: a key is too short to be one, or the file cannot be read or holds none.
        """
        fixed = _digests(environment.get(VARIABLE, "").split(","), VARIABLE)
        name = environment.get(FILE_VARIABLE)
        keys = cls(fixed, Path(name) if name else None)
        if name:
            try:
                text = Path(name).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ProsemillError(f"{FILE_VARIABLE}={name} cannot be read ({error}): write a key on each line of a text file") from None
            if not _digests(text.splitlines(), name):
                raise ProsemillError(f"{FILE_VARIABLE}={name} holds no key: write one on each line")
        return keys

    @property
    def are_asked(self) -> bool:
        """Whether a request needs one."""
        return bool(self._fixed) or self._file is not None

    def hold(self, given: bytes) -> bool:
        """Whether this is one of the keys; it takes as long for one as for another."""
        digest = hashlib.sha256(given).digest()
        return sum(hmac.compare_digest(digest, each) for each in self._fixed | self._current()) > 0

    def _current(self) -> frozenset[bytes]:
        """The file's keys as they are now; none while it cannot be read or one of them is too short."""
        if self._file is None:
            return frozenset()
        try:
            status = self._file.stat()
            seen = status.st_mtime_ns, status.st_size
            if seen != self._seen:
                self._of_file = _digests(self._file.read_text(encoding="utf-8").splitlines(), str(self._file))
                self._seen = seen
        except (OSError, UnicodeDecodeError, ProsemillError):
            self._of_file, self._seen = frozenset(), None
        return self._of_file


def _digests(lines: list[str], where: str) -> frozenset[bytes]:
    keys = [line.strip() for line in lines if line.strip()]
    if any(len(key) < SHORTEST for key in keys):
        raise ProsemillError(f"{where} holds a key of fewer than {SHORTEST} characters, which could be guessed: make a longer one")
    return frozenset(hashlib.sha256(key.encode()).digest() for key in keys)
