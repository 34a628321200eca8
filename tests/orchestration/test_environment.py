"""The password of the workspace's own servers: made once, for its owner alone, and one line where it cannot be had."""

import stat
from pathlib import Path

import pytest

from prosemill.errors import ProsemillError
from prosemill.orchestration.environment import AUTH, user_and_password


def test_a_password_is_made_once_for_its_owner_alone(workspace: Path) -> None:
    made = user_and_password()
    assert user_and_password() == made == AUTH.read_text(encoding="ascii")
    assert stat.S_IMODE(AUTH.stat().st_mode) == 0o600
    assert list(AUTH.parent.iterdir()) == [AUTH], "no part of it is left"


@pytest.mark.parametrize("content", [b"", b"prosemill:", b"no colon", b"a:b:c", b"prosemill:\xff"])
def test_a_broken_password_file_is_one_line(workspace: Path, content: bytes) -> None:
    AUTH.parent.mkdir(parents=True)
    AUTH.write_bytes(content)
    with pytest.raises(ProsemillError, match=r"auth is broken: delete it, and a new password is made$"):
        user_and_password()
    assert AUTH.read_bytes() == content


def test_a_password_that_cannot_be_read_is_one_line(workspace: Path) -> None:
    AUTH.mkdir(parents=True)
    with pytest.raises(ProsemillError, match=r"auth cannot be read \(Is a directory\): make it yours, or delete it$"):
        user_and_password()
