"""Who finds room comes in, whoever does not is told when to come back, and neither costs those who are served."""

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from prosemill.serving.admission import Admission, BusyError
from tests.serving.asking import GREEDY, LONG, PROMPT, ask, events, hold_steps, is_empty
from tests.serving.conftest import Served
from tests.waiting import LIMIT, until


def test_what_has_ended_leaves_its_place_and_its_tokens() -> None:
    rejected: list[None] = []
    admission = Admission(max_requests=2, max_tokens=100, note_rejection=lambda: rejected.append(None))
    for _ in range(3):
        with admission.admit() as take:
            take(70)
            with pytest.raises(BusyError), admission.admit() as take_more:
                take_more(40)
        assert (admission.num_requests, admission.num_tokens) == (0, 0)
    assert len(rejected) == 3


def test_more_than_there_is_room_for_is_told_when_to_come_back(serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve(max_requests=2)
    steps = hold_steps(served, monkeypatch)
    waiting = [requests.post(f"{served.url}/generate/stream", json=LONG | {"seed": seed}, stream=True, timeout=LIMIT) for seed in (1, 2)]
    answer = ask(served, GREEDY)
    assert answer.status_code == 429
    assert int(answer.headers["Retry-After"]) >= 1
    assert answer.json()["error"]["type"] == "rate_limit_error"
    steps.release(1000)
    for each in waiting:
        assert events(each)[-1][0] == "end", "those that are in are served"
    until(lambda: served.desk.admission.num_requests == 0, "a place is held")
    assert ask(served, GREEDY).status_code == 200


def test_who_finds_the_house_full_costs_it_no_reading(serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve(max_requests=1)
    writer, steps = served.desk.champion.writer, hold_steps(served, monkeypatch)
    with requests.post(f"{served.url}/generate/stream", json=LONG, stream=True, timeout=LIMIT) as waiting:
        monkeypatch.setattr(writer, "read", lambda _: pytest.fail("it reads the prompt"))
        monkeypatch.setattr(writer, "frame", lambda _: pytest.fail("it reads the text"))
        for path, body in (("/generate", GREEDY), ("/generate/stream", GREEDY), ("/score", {"text": PROMPT})):
            assert ask(served, body, path).status_code == 429
        assert served.meter("rejections_total") == 3
        steps.release(1000)
        events(waiting)


def test_what_is_being_read_has_a_place_already(serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch) -> None:
    served, goes_on, being_read = serve(max_requests=2), threading.Event(), list[str]()

    def held(read: Callable[[str], Any]) -> Callable[[str], Any]:
        def after_a_while(text: str) -> Any:
            being_read.append(text)
            assert goes_on.wait(LIMIT)
            return read(text)

        return after_a_while

    writer = served.desk.champion.writer
    monkeypatch.setattr(writer, "read", held(writer.read))
    monkeypatch.setattr(writer, "frame", held(writer.frame))
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(ask, served, GREEDY), pool.submit(ask, served, {"text": PROMPT}, "/score")]
        until(lambda: len(being_read) == 2, "both are read")
        assert ask(served, GREEDY).status_code == 429
        goes_on.set()
        assert [answer.result().status_code for answer in answers] == [200, 200]
    assert len(being_read) == 2
    assert is_empty(served)


def test_more_answers_than_there_can_be_at_once_are_a_mistake(serve: Callable[..., Served]) -> None:
    served = serve(max_requests=2)
    answer = ask(served, GREEDY | {"n": 3})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "n is 3, and there may be 2 answers at once: ask for fewer"


def test_a_full_house_that_closes_says_that_it_closes(serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve(max_requests=1)
    steps = hold_steps(served, monkeypatch)
    with requests.post(f"{served.url}/generate/stream", json=LONG, stream=True, timeout=LIMIT) as waiting:
        assert ask(served, GREEDY).status_code == 429
        monkeypatch.setattr(served.desk, "_end", math.inf)
        assert ask(served, GREEDY).status_code == 503
        steps.release(1000)
        events(waiting)


def test_tokens_are_counted_too_and_a_large_request_comes_in_alone(serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve(max_tokens=100)
    assert ask(served, GREEDY | {"max_new_tokens": 150}).status_code == 200
    steps = hold_steps(served, monkeypatch)
    with requests.post(f"{served.url}/generate/stream", json=LONG, stream=True, timeout=LIMIT):
        assert ask(served, GREEDY).status_code == 429
        steps.release(1000)
