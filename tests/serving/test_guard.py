"""The door of the service: what a web page, or anybody, may send to an address of this machine."""

import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from prosemill.errors import ProsemillError
from prosemill.serving import guard
from prosemill.serving.guard import MAX_BODY, Guard, refuse_open_doors
from tests.serving.conftest import Served
from tests.waiting import LIMIT

JSON = "application/json"
HOST = "127.0.0.1:3000"


class Room:
    """An application that answers everything, and counts how often it was asked."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        self.bodies.append(message["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"welcome"})


@pytest.fixture
def room() -> Room:
    return Room()


@pytest.fixture
def client(room: Room) -> TestClient:
    return TestClient(Guard(room), base_url=f"http://{HOST}")


@pytest.mark.parametrize("host", [HOST, "localhost:3000", "localhost", "[::1]:3000"])
def test_this_machine_may_come_in_under_its_own_names(client: TestClient, room: Room, host: str) -> None:
    assert client.post("/generate", content=b"{}", headers={"Host": host, "Content-Type": JSON}).text == "welcome"
    assert client.get("/livez", headers={"Host": host, "Origin": f"http://{host}"}).text == "welcome"
    assert room.bodies == [b"{}", b""]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example:3000"}, 403),
        ({"Host": "10.evil.example"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": f"https://{HOST}"}, 403),
        ({"Origin": "http://127.0.0.1:4200"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "multipart/form-data"}, 415),
        ({"Content-Type": "application/vnd.bentoml+pickle"}, 415),
        ({"Content-Type": ""}, 415),
    ],
    ids=str,
)
def test_a_page_or_a_stranger_does_not_get_in(client: TestClient, room: Room, headers: dict[str, str], status: int) -> None:
    answer = client.post("/generate", content=b"{}", headers={"Content-Type": JSON} | headers)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert room.bodies == []


def test_two_hosts_or_kinds_of_content_are_none(client: TestClient, room: Room) -> None:
    for name, values in (("Host", (HOST, "evil.example")), ("Content-Type", (JSON, "text/plain"))):
        headers = [("Content-Type", JSON)] if name == "Host" else []
        answer = client.post("/generate", content=b"{}", headers=[*headers, *((name, value) for value in values)])
        assert answer.status_code in (403, 415)
    assert room.bodies == []


def test_a_body_is_read_up_to_its_limit_whatever_length_it_tells(client: TestClient, room: Room) -> None:
    def chunks(size: int) -> Iterator[bytes]:
        for _ in range(size // 1000):
            yield b" " * 1000

    assert client.post("/generate", content=chunks(MAX_BODY), headers={"Content-Type": JSON}).status_code == 200
    assert client.post("/generate", content=chunks(MAX_BODY + 1000), headers={"Content-Type": JSON}).status_code == 413
    assert [len(body) for body in room.bodies] == [MAX_BODY]


def test_a_body_that_does_not_come_is_not_waited_for(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.2)
    address = urlsplit(served.url)
    with socket.create_connection((address.hostname, address.port), timeout=LIMIT) as connection:
        connection.sendall(
            f"POST /generate HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: {JSON}\r\nContent-Length: 9\r\n\r\n{{".encode()
        )
        told = connection.recv(10_000).decode()
    assert told.startswith("HTTP/1.1 408 ")
    assert "the body did not come within 0.2 s: send it faster" in told


def test_there_are_no_websockets(client: TestClient) -> None:
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/generate"):
        pass


def test_a_service_without_keys_listens_to_this_machine_alone() -> None:
    with socket.create_server(("127.0.0.1", 0)):
        refuse_open_doors()
    with socket.create_server(("0.0.0.0", 0)), pytest.raises(ProsemillError, match=r"must not listen on 0\.0\.0\.0"):  # noqa: S104
        refuse_open_doors()
