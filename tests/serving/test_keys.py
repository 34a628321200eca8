"""Keys: every route but health asks for one, a revoked one is none at once, and no bytes make the comparison fail."""

import base64
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from prosemill.errors import ProsemillError
from prosemill.serving.guard import Guard, refuse_open_door
from prosemill.serving.keys import Keys

FIRST, SECOND = "first-key-of-some-length", "second-key-of-some-length"
EVERYWHERE = "0.0.0.0"  # noqa: S104


def basic(name: str, password: str) -> str:
    """What a browser sends when its user has answered its question."""
    return f"Basic {base64.b64encode(f'{name}:{password}'.encode()).decode()}"


async def room(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"welcome"})


def client(keys: Keys) -> TestClient:
    return TestClient(Guard(room, keys), base_url="http://models.example")


def status(keys: Keys, authorization: str | bytes | None, path: str = "/metrics") -> int:
    value = authorization.encode() if isinstance(authorization, str) else authorization
    return client(keys).get(path, headers=[] if value is None else [(b"Authorization", value)]).status_code


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        FIRST,
        "Bearer",
        "Bearer ",
        f"Bearer {FIRST}x",
        f"Bearer {FIRST[:-1]}",
        f"Basic {FIRST}",
        b"Bearer \x80\xff\xfe" * 3,
        f"Bearer {FIRST} x",
        basic("anybody", f"{FIRST}x"),
        basic(FIRST, ""),
        f"Basic {FIRST}!",
        "Basic =",
        b"Basic " + base64.b64encode(b"\xff:\xff\xfe"),
    ],
    ids=repr,
)
def test_what_is_no_key_gets_nowhere_but_to_health(authorization: str | bytes | None) -> None:
    keys = Keys.read({"PROSEMILL_API_KEYS": f"{FIRST}, {SECOND}"})
    assert status(keys, authorization) == status(keys, authorization, "/livez/") == status(keys, authorization, "/ui") == 401
    assert [status(keys, authorization, path) for path in ("/livez", "/readyz")] == [200, 200]
    answer = client(keys).post("/generate", json={})
    assert answer.json()["error"]["type"] == "authentication_error"
    assert answer.headers["www-authenticate"].startswith("Basic "), "a browser asks its user"


def test_each_key_opens_and_any_name_will_do() -> None:
    keys = Keys.read({"PROSEMILL_API_KEYS": f"{FIRST},{SECOND}"})
    given = [f"{scheme} {key}" for key in (FIRST, SECOND) for scheme in ("Bearer", "bearer")]
    given += [basic(name, key) for key in (FIRST, SECOND) for name in ("", "anybody")]
    assert [status(keys, each) for each in given] == [200] * 8


def test_two_keys_at_once_are_none() -> None:
    headers = [("Authorization", f"Bearer {FIRST}"), ("Authorization", f"Bearer {SECOND}")]
    assert client(Keys.read({"PROSEMILL_API_KEYS": f"{FIRST},{SECOND}"})).get("/metrics", headers=headers).status_code == 401


def test_a_key_that_is_taken_out_of_the_file_is_revoked_at_once(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{FIRST}\n\n{SECOND}\n", encoding="utf-8")
    keys = Keys.read({"PROSEMILL_API_KEYS_FILE": str(file)})
    assert [status(keys, f"Bearer {key}") for key in (FIRST, SECOND)] == [200, 200]
    file.write_text(f"{SECOND}\n", encoding="utf-8")
    assert [status(keys, f"Bearer {key}") for key in (FIRST, SECOND)] == [401, 200]
    file.unlink()
    assert status(keys, f"Bearer {SECOND}") == status(keys, None) == 401, "a lost file opens no door"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda _: {"PROSEMILL_API_KEYS": "short"}, "fewer than 16 characters"),
        (lambda folder: {"PROSEMILL_API_KEYS_FILE": f"{folder}/none"}, "cannot be read"),
        (lambda folder: {"PROSEMILL_API_KEYS_FILE": str(folder)}, "cannot be read"),
        (lambda _: {"PROSEMILL_API_KEYS_FILE": os.devnull}, "holds no key"),
    ],
)
def test_keys_that_make_no_sense_are_a_mistake_in_one_line(tmp_path: Path, make: Callable[[Path], dict[str, str]], words: str) -> None:
    with pytest.raises(ProsemillError, match=words):
        Keys.read(make(tmp_path))


def test_with_keys_the_service_may_listen_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProsemillError, match="or set PROSEMILL_API_KEYS"):
        refuse_open_door(EVERYWHERE)
    monkeypatch.setenv("PROSEMILL_API_KEYS", FIRST)
    refuse_open_door(EVERYWHERE)


def test_pages_of_other_origins_are_refused_with_a_key_too() -> None:
    for authorization in (f"Bearer {FIRST}", basic("anybody", FIRST)):
        headers = {"Authorization": authorization, "Origin": "http://evil.example"}
        assert client(Keys.read({"PROSEMILL_API_KEYS": FIRST})).get("/metrics", headers=headers).status_code == 403
