"""What clients do with their connections to the real service."""

import http.client
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from prosemill.serving.worker import BENTOML_KEEP_ALIVE
from tests.campaigns import repeats
from tests.serving.asking import LONG, many_leave
from tests.serving.real import RealService, real_service
from tests.waiting import LIMIT, until

MOST = 48
"""Requests that have a place."""
NUM_LEAVING = repeats(few=100, many=1000)


@pytest.fixture(scope="module")
def service(champion: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealService]:
    """The real service, which all clients here ask."""
    with real_service(champion, tmp_path_factory.mktemp("connections") / "log", PROSEMILL_MAX_REQUESTS=str(MOST)) as service:
        yield service


def test_a_connection_may_be_idle_for_longer_than_clients_leave_it_so(service: RealService) -> None:
    connection = http.client.HTTPConnection(urlsplit(service.url).netloc, timeout=LIMIT)
    for seconds in (0, BENTOML_KEEP_ALIVE + 2):
        time.sleep(seconds)
        connection.request("GET", "/livez")
        answer = connection.getresponse()
        assert answer.status == 200
        answer.read()
        assert connection.sock is not None, "it is the same connection"
    connection.close()


def test_thousands_of_requests_leave_no_memory_taken(service: RealService) -> None:
    def megabytes() -> float:
        return max(process.memory_full_info().uss for process in service.processes()) / 1e6

    def ask(times: int) -> None:
        with requests.Session() as session:
            for _ in range(times):
                assert session.get(f"{service.url}/livez", timeout=LIMIT).ok

    ask(500)
    before = megabytes()
    ask(4000)
    assert megabytes() - before < 6, "a kilobyte and a half for each"


def test_clients_that_leave_at_random_leave_nothing_behind(service: RealService) -> None:
    def told() -> str:
        return requests.get(f"{service.url}/metrics", timeout=LIMIT).text

    def answer() -> str:
        given = requests.post(f"{service.url}/generate", json=LONG | {"seed": 9}, timeout=LIMIT)
        assert given.ok, given.text
        return str(given.json()["generated_text"])

    expected = answer()
    many_leave(service.url, NUM_LEAVING)
    until(lambda: "prosemill_rows_in_use 0.0" in told(), "a row is held")
    cancelled = re.search(r'^prosemill_answers_total{outcome="cancelled"} (.*)$', told(), re.MULTILINE)
    assert cancelled is not None
    assert float(cancelled[1]) > NUM_LEAVING / 10, "some left before their answer's end"
    with ThreadPoolExecutor(MOST) as pool:
        answers = list(pool.map(lambda _: answer(), range(MOST)))  # a place that is held would cost one of them its own
    assert answers == [expected] * MOST
    assert not re.search("Traceback|Error", service.log.read_text())
