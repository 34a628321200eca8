"""What goes wrong inside is said to who asked and to who watches, and stays with whom it concerns."""

import asyncio
import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from anyio import from_thread

from prosemill.generation.engine_thread import Request
from prosemill.generation.sampling import Settings
from prosemill.generation.writer import Writer
from prosemill.serving import door
from prosemill.serving.log import log
from prosemill.serving.page import PATH
from prosemill.serving.stream import Stream
from tests.serving.asking import GREEDY, LONG, PROMPT, ask, events, slow_down
from tests.serving.conftest import Served
from tests.serving.visit import Visit
from tests.waiting import LIMIT, until

CANARY = "canaryprompt"
COMPLETION: dict[str, Any] = {"model": "prosemill", "prompt": PROMPT}
BODIES: dict[str, dict[str, Any]] = {
    "/generate": GREEDY,
    "/generate/stream": GREEDY,
    "/v1/completions": COMPLETION,
    "/score": {"text": PROMPT},
}


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "text/plain", "Host": "evil.example"},
        {"Content-Type": "application/json", "Host": "evil.example"},
        {"Content-Type": "application/json", "Origin": "http://evil.example"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "multipart/form-data"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "application/vnd.bentoml+pickle"},
        {},
    ],
    ids=str,
)
def test_what_a_page_can_send_moves_the_engine_by_no_step(served: Served, headers: dict[str, str]) -> None:
    engine = served.engine
    before = engine.num_steps
    visit = Visit(served.url)
    call = {"data": [False, PROMPT, 12, 0, 0.9, 50, 1.0, "1"], "fn_index": visit.function, "session_hash": visit.session}
    for path, body in (BODIES | {f"{PATH}/gradio_api/queue/join": call}).items():
        answer = requests.post(served.url + path, data=json.dumps(body).encode(), headers=headers, timeout=LIMIT)
        assert answer.status_code in (403, 415)
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert engine.num_steps == before
    assert ask(served, GREEDY).ok
    assert engine.num_steps > before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_that_ends_is_said_to_all_and_nobody_waits_for_it(serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve(num_rows=2)
    engine = served.engine
    slow_down(served, monkeypatch)
    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(ask, served, LONG, "/generate/stream" if number % 2 else "/generate") for number in range(6)]
        until(lambda: served.desk.admission.num_requests == 6, "some are written, and others wait")

        def break_down(*_: Any) -> None:
            raise RuntimeError("out of memory")

        monkeypatch.setattr(engine._decoder, "step", break_down)
        answers = [each.result(timeout=LIMIT) for each in waiting]
    for answer in answers:
        if "event-stream" in answer.headers["content-type"]:
            name, data = events(answer)[-1]
            assert (name, data["error"]["type"]) == ("error", "server_error")
        else:
            assert answer.status_code == 500
            assert answer.json()["error"]["message"] == "the model could not answer: the engine has ended"
    until(lambda: not engine.is_alive, "the engine ends")
    for path in ("/livez", "/readyz"):
        answer = requests.get(served.url + path, timeout=LIMIT)
        assert (answer.status_code, answer.json()["error"]["message"]) == (503, "the engine has ended: start the service again")
    for path, body in BODIES.items():
        assert ask(served, body, path).status_code == 503
    assert served.desk.admission.num_requests == served.desk.admission.num_tokens == 0
    assert served.meter("answers_total", outcome="failed") == 6


def test_an_answer_beside_one_that_cannot_begin_is_dropped(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    submit, begun = served.engine.submit, list[Request]()

    def submit_one(*arguments: Any) -> Request:
        if begun:
            raise KeyError("foreseen by nobody")
        begun.append(submit(*arguments))
        return begun[0]

    monkeypatch.setattr(served.engine, "submit", submit_one)
    assert ask(served, LONG | {"n": 2}).status_code == 500
    assert [request.is_cancelled for request in begun] == [True]


def test_tokens_of_an_answer_that_failed_are_counted_all_the_same(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(served.engine, "_show", fail)
    streamed = ask(served, COMPLETION | {"n": 2, "stream": True, "stream_options": {"include_usage": True}}, "/v1/completions")
    *failed, usage, last = [data for _, data in events(streamed)]
    assert [set(each) for each in failed] == [{"error"}] * 2
    assert (usage["usage"]["completion_tokens"], last) == (2, "[DONE]")


@pytest.mark.parametrize("on_page", [False, True], ids=["asked", "on the page"])
@pytest.mark.parametrize("part", ["reading", "writing", "routes"])
def test_what_a_broken_service_prints_quotes_nobody(
    serve: Callable[..., Served], part: str, on_page: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    served = serve()
    writer = served.desk.champion.writer

    def fail(*_: Any, **__: Any) -> None:
        raise KeyError(f"{CANARY} is broken")

    broken = {"reading": (writer, "read"), "writing": (served.engine._decoder, "read"), "routes": (served.desk, "enter")}
    monkeypatch.setattr(*broken[part], fail)
    logged = list[str]()

    def log_noted(**fields: Any) -> None:
        log(**fields)
        logged.append(fields["path"])

    monkeypatch.setattr(door, "log", log_noted)
    if on_page:
        assert 'class="note fault"' in Visit(served.url).generate(CANARY).note()
        last = f"{PATH}/gradio_api/queue/data"
    else:
        answer = ask(served, GREEDY | {"prompt": CANARY})
        assert answer.status_code == 500
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        last = "/generate"
    until(lambda: last in logged, "it is said")
    printed = "".join(capfd.readouterr())  # once: what is printed while it reads is lost
    assert on_page or '"status": 500' in printed
    assert part == "writing" or "KeyError in\n" in printed, "it says what, and where"
    assert "Traceback" not in printed
    assert CANARY not in printed


def test_an_answer_that_nobody_reads_ends_at_its_deadline(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_down(served, monkeypatch)
    writer, ends = served.desk.champion.writer, list[str]()

    async def begin_and_read_late() -> tuple[str, str]:
        settings = Settings(max_new_tokens=200, temperature=0)
        stream = Stream(writer.engine, writer.read(PROMPT), [settings], deadline=0.4, note=lambda _, outcome: ends.append(outcome))
        await asyncio.sleep(1)
        assert (writer.engine.num_running, ends) == (0, ["deadline"])
        ((text, finished),) = await stream.texts()
        return text, finished.reason

    text, finish = asyncio.run(begin_and_read_late())
    assert finish == "deadline"
    assert text


def test_rows_in_use_are_told_as_they_are(serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve()
    slow_down(served, monkeypatch)
    assert served.meter("rows_in_use") == 0
    with requests.post(f"{served.url}/generate/stream", json=LONG | {"n": 3, "temperature": 0}, stream=True, timeout=LIMIT) as stream:
        pieces = stream.iter_content()  # which closes the connection when it is forgotten
        next(pieces)
        until(lambda: served.meter("rows_in_use") == 3, "three are in use, before any has ended")
        told = requests.get(f"{served.url}/metrics", timeout=LIMIT).text
        assert re.findall(r"^prosemill_rows_in_use (.*)$", told, re.MULTILINE) == ["3.0"]
    until(lambda: served.meter("rows_in_use") == 0, "none is in use")


def test_who_came_before_the_end_has_the_time_that_is_left_though_the_prompt_was_still_being_read(
    serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(deadline=60)
    slow_down(served, monkeypatch)
    writer = served.desk.champion.writer
    read, num_visits = writer.read, list[int]()

    def read_while_the_service_ends(prompt: str) -> list[int]:
        num_visits.append(served.desk.num_visits)
        from_thread.run_sync(served.desk.close, 0.2)
        return read(prompt)

    monkeypatch.setattr(writer, "read", read_while_the_service_ends)
    answer = ask(served, LONG)
    assert num_visits == [1]
    assert (answer.status_code, answer.json()["finish_reason"]) == (200, "deadline")
    until(lambda: served.desk.num_visits == 0, "nobody is left")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_base_model_whose_engine_has_ended_is_told_to_who_watches(
    serve: Callable[..., Served], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve()
    with Writer.open(tiny_model, precision="fp32", num_rows=1) as base:
        monkeypatch.setattr(served.desk.champion, "base", base)
        assert requests.get(f"{served.url}/livez", timeout=LIMIT).status_code == 200
    assert requests.get(f"{served.url}/livez", timeout=LIMIT).status_code == 503
