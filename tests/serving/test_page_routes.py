"""What the page's routes take: what the page sends, and nothing else, as Gradio would read files and addresses out of any value."""

import json
from typing import Any

import pytest
import requests

from prosemill.serving.page import PATH, sessions
from tests.serving.asking import is_empty, slow_down
from tests.serving.conftest import Served
from tests.serving.visit import Visit
from tests.waiting import LIMIT, until

CANARY = "canaryprompt"
WRITE = [False, CANARY, 12, 0, 0.9, 50, 1.0, "1"]
FILE = {"path": f"/{CANARY}", "meta": {"_type": "gradio.FileData"}}


def with_value(number: int, value: Any) -> list[Any]:
    """The values of the function that writes, with another in one place."""
    return [*WRITE[:number], value, *WRITE[number + 1 :]]


def check_refused(answer: requests.Response, status: int) -> None:
    """It is refused in the one shape, and quotes nobody."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"].isprintable()
    assert CANARY not in answer.text


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"data": with_value(1, FILE)}, "data.1: "),
        ({"data": with_value(7, [FILE])}, "data.7: "),
        ({"data": with_value(3, float("nan"))}, "data.3: "),
        ({"data": with_value(3, 10**400)}, "data.3: "),
        ({"data": WRITE[:1]}, "the function takes 8 values, not 1"),
        ({"data": [*WRITE, *WRITE]}, "the function takes 8 values, not 16"),
        ({"data": CANARY}, "data: "),
        ({"fn_index": 999}, "fn_index names no function"),
        ({"fn_index": 3}, "fn_index names no function"),  # Stop's, which runs in the browser
        ({"fn_index": -1}, "fn_index: "),
        ({"fn_index": CANARY}, "fn_index: "),
        ({"session_hash": None}, "session_hash: "),
        ({"session_hash": f"../{CANARY}\n"}, "session_hash: "),
        ({"session_hash": CANARY * 100}, "session_hash: "),
    ],
    ids=lambda given: str(given)[:60],
)
def test_a_call_is_one_that_the_page_makes(served: Served, fields: dict[str, Any], words: str, capfd: pytest.CaptureFixture[str]) -> None:
    visit = Visit(served.url)
    body = json.dumps({"data": WRITE, "fn_index": visit.function, "session_hash": visit.session} | fields)
    answer = requests.post(f"{visit.url}/queue/join", data=body, headers={"Content-Type": "application/json"}, timeout=LIMIT)
    check_refused(answer, 400)
    assert words in answer.json()["error"]["message"]
    assert CANARY not in "".join(capfd.readouterr())


@pytest.mark.parametrize("route", ["queue/join", "cancel", "reset"])
@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"{}", b"[" * 100_000, b'{"event_id": "\\ud800"}', b'{"event_id": "x"}'], ids=lambda body: repr(body)[:30]
)
def test_a_body_that_does_not_fit_is_refused(served: Served, route: str, body: bytes) -> None:
    url = f"{served.url}{PATH}/gradio_api/{route}"
    check_refused(requests.post(url, data=body, headers={"Content-Type": "application/json"}, timeout=LIMIT), 400)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"/static/{CANARY * 500}", 404),
        (f"/assets/{CANARY}.js", 404),
        (f"/assets/%00{CANARY}", 404),
        ("/static/fonts", 403),
        ("/static/../index.html", 404),
        ("/static/..%2f..%2f..%2froutes.py", 403),
        ("/gradio_api/startup-events", 404),
        ("/gradio_api/queue/data", 400),
        (f"/gradio_api/queue/data?session_hash=../{CANARY}", 400),
        (f"/gradio_api/queue/data?session_hash={CANARY}", 404),
    ],
)
def test_what_is_not_there_is_refused(served: Served, path: str, status: int) -> None:
    check_refused(requests.get(f"{served.url}{PATH}{path}", timeout=LIMIT), status)


def test_heads_are_given_of_what_is_there(served: Served) -> None:
    for path in ("/", "/config", "/theme.css"):
        answer = requests.head(f"{served.url}{PATH}{path}", timeout=LIMIT)
        assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize("value", [CANARY, None, True, 1e300, -1.5, ""], ids=repr)
def test_a_value_that_makes_no_sense_is_a_line_on_the_page_and_none_in_the_log(
    served: Served, value: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    for number in range(1, len(WRITE)):
        visit = Visit(served.url)
        assert visit.join(*with_value(number, value)).ok
        assert visit.note()
    printed = "".join(capfd.readouterr())
    assert CANARY not in printed
    assert "Traceback" not in printed


def kept(served: Served, session: str) -> list[str]:
    """What Gradio holds of a session."""
    blocks = served.app.state.page.begin().result()[0]
    queue = blocks._queue
    places = {"messages": queue.pending_messages_per_session, "calls": queue.pending_event_ids_session}
    places |= {"state": blocks.state_holder.session_data, "times": blocks.state_holder.time_last_used}
    return [name for name, place in places.items() if session in place] + ["events"] * len(queue.event_ids_to_events)


def test_who_does_not_listen_is_not_written_for_and_forgotten(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_down(served, monkeypatch)
    monkeypatch.setattr(sessions, "SECONDS", 0.5)
    engine = served.engine
    before = engine.num_steps
    visits = [Visit(served.url).generate("The history of", new=200) for _ in range(2)]
    until(lambda: engine.num_running == 2, "they are not written")
    until(lambda: is_empty(served), "the rows or the places are held")
    assert 0 < engine.num_steps - before < 100
    until(lambda: not any(kept(served, visit.session) for visit in visits), "something is kept")
    check_refused(visits[0].listen(), 404)
    assert "answer-v7-" in visits[0].generate("The history of").note()


def test_who_listens_is_kept_between_calls(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    visit = Visit(served.url)
    for _ in range(2):
        assert "answer-v7-" in visit.generate("The history of", new=20).note()
        until(lambda: set(kept(served, visit.session)) == {"messages", "calls", "state", "times"}, "the call is not over")
    monkeypatch.setattr(sessions, "SECONDS", 0.2)
    visit.generate("The history of", new=20).note()
    until(lambda: not kept(served, visit.session), "something is kept")


def test_who_does_not_read_is_not_written_for(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_down(served, monkeypatch)
    monkeypatch.setattr(sessions, "MOST_UNREAD", 5)
    engine = served.engine
    before = engine.num_steps
    visit = Visit(served.url).generate("The history of", new=200)
    until(lambda: not is_empty(served), "it is not written")
    until(lambda: is_empty(served), "the row or the place is held")
    assert 0 < engine.num_steps - before < 100
    check_refused(visit.join(*WRITE), 400)
