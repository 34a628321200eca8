"""Another champion takes its place while requests come: none fails, and each gets its text from one version alone."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import requests

from prosemill.generation.writer import Writer
from prosemill.serving.champion import Champion
from tests.models import write_model
from tests.serving.asking import hold_steps
from tests.serving.conftest import NUM_ROWS, VERSION, Served
from tests.waiting import LIMIT, until

BODY: dict[str, Any] = {"prompt": "The history of", "max_new_tokens": 40, "temperature": 0}
NUM_CLIENTS = 8


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("other")
    write_model(folder, "llama", tiny_model, context_size=64, seed=5)
    return folder


def load(folder: Path, version: int) -> Champion:
    with ExitStack() as stack:
        writer = stack.enter_context(Writer.open(folder, precision="fp32", num_rows=NUM_ROWS))
        return Champion(version, "fp32", writer, stack.pop_all().close)


def ask(served: Served) -> requests.Response:
    return requests.post(f"{served.url}/generate", json=BODY, timeout=LIMIT)


def test_a_swap_under_load_fails_no_request(serve: Callable[..., Served], tiny_model: Path, other_model: Path) -> None:
    served, answers, ends = serve(), list[requests.Response](), threading.Event()

    def go_on() -> None:
        while not ends.is_set():
            answers.append(ask(served))

    pool = ThreadPoolExecutor(NUM_CLIENTS)
    clients = [pool.submit(go_on) for _ in range(NUM_CLIENTS)]
    for version, folder in ((8, other_model), (9, tiny_model), (10, other_model)):
        until(lambda: len({answer.json()["model_version"] for answer in answers}) == served.desk.champion.version - VERSION + 1, "none")
        before = served.desk.champion
        served.desk.swap(load(folder, version)).join()
        assert version == 8 or not before.writer.engine.is_alive, "the one before is closed when its last visitor has gone"
    until(lambda: answers[-1].json()["model_version"] == 10, "the last is served")
    ends.set()
    for client in clients:
        client.result()  # raises what a client has met
    assert {answer.status_code for answer in answers} == {200}
    texts: dict[int, set[str]] = {}
    for answer in answers:
        texts.setdefault(answer.json()["model_version"], set()).add(answer.json()["generated_text"])
    assert {version: len(each) for version, each in texts.items()} == {VERSION: 1, 8: 1, 9: 1, 10: 1}
    assert texts[VERSION] == texts[9] != texts[8] == texts[10]
    assert served.meter("model_version") == 10
    served.desk.champion.close()


def test_what_has_begun_ends_on_the_version_where_it_began(
    serve: Callable[..., Served], tiny_model: Path, other_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve()
    expected = ask(served).json()["generated_text"]
    before, following, last = served.desk.champion, load(other_model, 8), load(tiny_model, 9)
    steps = hold_steps(served, monkeypatch)
    with requests.post(f"{served.url}/generate/stream", json=BODY, stream=True, timeout=LIMIT) as waiting:
        until(lambda: before.writer.engine.num_running == 1, "it is being written")
        closing = served.desk.swap(following)
        assert ask(served).json()["model_version"] == 8
        served.desk.swap(last).join()  # the way back from a bad version waits for nobody
        assert ask(served).json()["model_version"] == 9
        assert not following.writer.engine.is_alive
        assert closing.is_alive()
        assert before.writer.engine.num_running == 1
        steps.release(BODY["max_new_tokens"])
        told = waiting.content.decode()
    closing.join()
    assert f'"model_version":{VERSION}' in told
    assert '"finish_reason":"length"' in told
    assert ask(served).json()["generated_text"] == expected
    last.close()
