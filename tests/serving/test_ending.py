"""The end of the real service: newcomers are told so, who is being served may end, and nothing stays behind."""

import json
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.end_to_end.house import living
from tests.serving.real import RealService, real_service
from tests.serving.visit import Visit
from tests.waiting import LIMIT, until

DRAIN = 8.0  # seconds, in which a busy machine too asks what the tests ask
SHORT: dict[str, Any] = {"prompt": "The history of", "max_new_tokens": 60, "temperature": 1.0, "seed": 3}
ENDLESS: dict[str, Any] = {"prompt": "The history of", "max_new_tokens": 4000, "temperature": 0, "n": 7}


@pytest.fixture
def service(champion: Path, tmp_path: Path) -> Iterator[RealService]:
    with real_service(champion, tmp_path / "log", PROSEMILL_DRAIN=str(DRAIN), PROSEMILL_NUM_ROWS="8") as service:
        yield service


def stream(service: RealService, body: dict[str, Any]) -> requests.Response:
    """An answer that has begun."""
    answer = requests.post(f"{service.url}/generate/stream", json=body, stream=True, timeout=LIMIT)
    assert answer.raw.read(1) == b"e"
    return answer


def rest(answer: requests.Response) -> list[tuple[str, Any]]:
    """The events of a stream from its second byte on."""
    content = b"e" + answer.raw.read()
    return [
        (head.removeprefix("event: "), json.loads(data.removeprefix("data: ")))
        for head, data in (part.split("\n", 1) for part in content.decode().split("\n\n") if part)
    ]


def test_on_sigterm_newcomers_are_refused_and_the_others_end(service: RealService) -> None:
    whole = requests.post(f"{service.url}/generate", json=SHORT, timeout=LIMIT).json()
    processes = service.processes()
    endless, short = stream(service, ENDLESS), stream(service, SHORT)
    begin = time.monotonic()
    service.process.terminate()
    until(lambda: requests.get(f"{service.url}/readyz", timeout=LIMIT).status_code == 503, "it says that it is not ready")
    assert requests.get(f"{service.url}/livez", timeout=LIMIT).status_code == 200
    refused = requests.post(f"{service.url}/generate", json=SHORT, timeout=LIMIT)
    assert (refused.status_code, refused.json()["error"]["type"]) == (503, "server_error")
    assert "ending" in refused.json()["error"]["message"]
    *texts, (last, end) = rest(short)
    assert (last, "".join(data["text"] for _, data in texts)) == ("end", whole["generated_text"])
    assert end["finish_reason"] == whole["finish_reason"]
    ends = [data for name, data in rest(endless) if name == "end"]
    assert [end["finish_reason"] for end in ends] == ["deadline"] * 7
    assert all(end["usage"]["completion_tokens"] > 0 for end in ends)
    assert service.process.wait(LIMIT) == 0
    assert time.monotonic() - begin > DRAIN - 0.5
    until(lambda: not living(processes), "nothing is left")
    assert not re.search("Traceback|Error", service.log.read_text()), service.log.read_text()


def test_a_client_that_does_not_read_does_not_keep_it(service: RealService) -> None:
    with stream(service, ENDLESS | {"n": 8}):
        begin = time.monotonic()
        service.process.send_signal(signal.SIGINT)
        assert service.process.wait(LIMIT) == 0
        assert time.monotonic() - begin > DRAIN


def test_on_the_page_too_newcomers_are_told_so_and_the_others_end(service: RealService) -> None:
    first, late = Visit(service.url), Visit(service.url)
    with ThreadPoolExecutor() as pool:
        end = pool.submit(first.generate("The history of", new=4000).note)
        until(lambda: "prosemill_rows_in_use 1.0" in requests.get(f"{service.url}/metrics", timeout=LIMIT).text, "it is written")
        service.process.terminate()
        until(lambda: requests.get(f"{service.url}/readyz", timeout=LIMIT).status_code == 503, "it says that it is not ready")
        assert "the service is ending" in late.generate("The history of").note()
        assert "answer-v" in end.result()
    assert service.process.wait(LIMIT) == 0
    assert not re.search("Traceback|Error", service.log.read_text()), service.log.read_text()
