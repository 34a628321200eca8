"""What clients of the service do, and what its engine is made to do meanwhile."""

import json
import random
import re
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from tests.campaigns import seed
from tests.serving.conftest import Served
from tests.waiting import LIMIT

PROMPT = "The history of"
GREEDY: dict[str, Any] = {"prompt": PROMPT, "max_new_tokens": 12, "temperature": 0}
LONG: dict[str, Any] = {"prompt": PROMPT, "max_new_tokens": 200, "temperature": 2.0, "top_p": 1.0}  # the model ends its text sometimes


def ask(served: Served, body: Any, path: str = "/generate") -> requests.Response:
    return requests.post(f"{served.url}{path}", json=body, timeout=LIMIT)


def events(answer: requests.Response) -> list[tuple[str, Any]]:
    """Names and data of server-sent events."""
    found = re.findall(r"(?:event: (\w+)\n)?data: (.*)\n\n", answer.content.decode())
    return [(name, data if data == "[DONE]" else json.loads(data)) for name, data in found]


def leave(url: str, path: str, body: dict[str, Any], stays: Callable[[], object]) -> None:
    """Send a request, and hang up after a while without reading an answer."""
    host, port = url.removeprefix("http://").split(":")
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + content)
        stays()


def many_leave(url: str, number: int) -> None:
    """Have so many clients ask, and each hang up after a while."""
    draws = random.Random(seed())  # noqa: S311 - moments, no secrets
    moments = [draws.expovariate(1 / 0.03) for _ in range(number)]

    def visit(client: int) -> None:
        path = ("/generate", "/generate/stream")[client % 2]
        leave(url, path, LONG | {"seed": client, "stop": ["zz"][: client % 2]}, lambda: time.sleep(moments[client]))

    with ThreadPoolExecutor(40) as pool:
        list(pool.map(visit, range(number)))


def slow_down(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a step take 20 ms at least."""
    decoder = served.engine._decoder
    step = decoder.step

    def slowly(*given: Any) -> Any:
        time.sleep(0.02)
        return step(*given)

    monkeypatch.setattr(decoder, "step", slowly)


def hold_steps(served: Served, monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Have the champion take no more steps than are released."""
    steps, decoder = threading.Semaphore(0), served.engine._decoder
    step = decoder.step

    def held(*given: Any) -> Any:
        assert steps.acquire(timeout=LIMIT), "no step was released"
        return step(*given)

    monkeypatch.setattr(decoder, "step", held)
    return steps


def is_empty(served: Served) -> bool:
    return served.desk.admission.num_requests == served.engine.num_running == 0
