"""The page at /ui: what it lets in, and what a person does with it, in a browser."""

import asyncio
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from fastapi.routing import iter_route_contexts

from prosemill.generation.writer import Writer
from prosemill.serving.champion import Champion
from prosemill.serving.page import PATH
from prosemill.serving.page.fragments import report
from prosemill.serving.page.passage import Passage
from tests.browser import Browser, needs_browser, running_browser
from tests.models import write_model
from tests.serving.asking import hold_steps, is_empty, slow_down
from tests.serving.conftest import NUM_ROWS, Served, serving
from tests.serving.visit import Visit
from tests.waiting import LIMIT, until

KEY = "a-key-of-some-length"
METRICS = json.loads((Path(__file__).parents[2] / "metrics/evaluation.json").read_text(encoding="utf-8"))
NEEDED = {"/", "/config", "/theme.css", "/assets/x", "/static/x", "/gradio_api/queue/data"}
NEEDED_POSTS = {"/gradio_api/queue/join", "/gradio_api/cancel", "/gradio_api/reset"}
LONG: dict[str, Any] = {"new": 200, "temperature": 0}


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("base")
    write_model(folder, "gpt2", tiny_model, context_size=256, seed=3)
    return folder


@contextmanager
def with_base(folder: Path, base: Path, **settings: float) -> Iterator[Served]:
    """A service whose version 8 has a report, and its base model beside it."""
    with serving(folder, **settings) as served, Writer.open(base, precision="fp32", num_rows=NUM_ROWS) as writer:
        before = served.desk.champion
        served.desk.swap(Champion(8, "fp32", before.writer, lambda: None, {"model": "<tiny>"}, METRICS, writer))
        yield served


@pytest.fixture(scope="module")
def paged(tiny_model: Path, other_model: Path) -> Iterator[Served]:
    """The service with its page, which the tests of this module share."""
    with with_base(tiny_model, other_model) as served:
        yield served


@pytest.fixture
def keyed(serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch) -> Served:
    """A service that asks for a key."""
    monkeypatch.setenv("PROSEMILL_API_KEYS", KEY)
    return serve()


def routes(served: Served) -> list[tuple[str, str]]:
    """Method and path of all routes that Gradio has, with something in place of each parameter."""
    app = served.app.state.page.begin().result()[1].routes[-1].app
    found = iter_route_contexts(app.routes)
    return [(method, re.sub(r"{[^}]*}", "x", route.path or "")) for route in found for method in sorted(route.methods or ())]


def needs(method: str, path: str) -> bool:
    """Whether the page needs a route."""
    return path in (NEEDED_POSTS if method == "POST" else NEEDED)


def test_gradios_routes_are_shut_but_for_those_that_the_page_needs(paged: Served) -> None:
    found = routes(paged)
    assert {"/gradio_api/upload", "/gradio_api/file=x", "/gradio_api/proxy=x", "/gradio_api/call/x", "/login"} <= {
        path for _, path in found
    }
    assert {(method, path) for method, path in found if needs(method, path)} >= {("GET", path) for path in NEEDED}
    for method, path in found:
        if not needs(method, path):
            answer = requests.request(method, f"{paged.url}{PATH}{path}", json={}, timeout=LIMIT)
            assert answer.status_code == 404, (method, path)
            assert method == "HEAD" or answer.json()["error"]["message"] == "the page has no such route"


def test_where_there_are_keys_no_route_of_the_page_answers_without_one(keyed: Served) -> None:
    for method, path in [*routes(keyed), ("GET", "")]:
        answer = requests.request(method, f"{keyed.url}{PATH}{path}", json={}, allow_redirects=False, timeout=LIMIT)
        assert answer.status_code == 401, (method, path)
    assert requests.get(f"{keyed.url}{PATH}", auth=("anybody", KEY), timeout=LIMIT).status_code == 200


def test_nothing_can_be_uploaded(paged: Served) -> None:
    url = f"{paged.url}{PATH}/gradio_api/upload"
    assert requests.post(url, files={"files": b"x" * 1000}, timeout=LIMIT).status_code == 415
    assert requests.post(url, json={}, timeout=LIMIT).status_code == 404


def test_the_page_may_load_from_nowhere_else_and_stand_in_no_other(paged: Served) -> None:
    answer = requests.get(f"{paged.url}{PATH}", timeout=LIMIT)
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "http" not in policy
    assert '"analytics_enabled":false' in answer.text


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"prompt": ""}, "Type the beginning of a text first"),
        ({"prompt": "word " * 300}, "prompt and answer together may have 256: shorten it"),
        ({"prompt": "a", "new": 250, "seed": "seven"}, "seed: Input should be a valid integer"),
        ({"prompt": "a\0b"}, "holds a null character"),
    ],
    ids=["empty", "too long", "seed", "null"],
)
def test_a_mistake_is_one_line_on_the_page(paged: Served, given: dict[str, Any], words: str) -> None:
    note = Visit(paged.url).generate(**given).note()
    assert 'class="note fault"' in note
    assert words in note


def test_the_page_is_admitted_as_the_routes_are(tiny_model: Path, other_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with with_base(tiny_model, other_model, max_requests=2) as served:
        slow_down(served, monkeypatch)
        first = Visit(served.url).generate("The history of", beside=True, **LONG)
        until(lambda: served.desk.champion.num_running == 2, "the answer and the base model's are written")
        assert "the service is busy: come back in" in Visit(served.url).generate("The history of").note()
        assert requests.post(f"{served.url}/generate", json={"prompt": "a"}, timeout=LIMIT).status_code == 429
        assert "answer-v8-" in first.note()
        assert served.meter("rejections_total") == 2
        assert served.meter("answers_total", outcome="length") == 2
        until(lambda: is_empty(served), "a row or a place is held")


def test_no_limit_of_gradios_keeps_people_waiting_where_there_is_room(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many, goes_on = 45, threading.Event()  # Gradio's own limit is 40
    with serving(tiny_model, max_requests=many) as served, ExitStack() as stack:
        stack.callback(goes_on.set)
        decoder = served.engine._decoder
        step = decoder.step
        monkeypatch.setattr(decoder, "step", lambda *given: goes_on.wait() and step(*given))
        for _ in range(many):
            stack.enter_context(Visit(served.url).generate("The history of", **LONG).listen())
        until(lambda: served.desk.admission.num_requests == many, "some are kept waiting")
        assert "the service is busy: come back in" in Visit(served.url).generate("The history of").note()


def test_a_page_that_is_closed_frees_its_rows(paged: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_down(paged, monkeypatch)
    engine = paged.desk.champion.writer.engine
    before = engine.num_steps
    visit = Visit(paged.url).generate("The history of", beside=True, **LONG)
    with visit.listen():
        until(lambda: paged.desk.champion.num_running == 2, "they are not written")
    until(lambda: is_empty(paged) and paged.desk.champion.num_running == 0, "a row or a place is held")
    assert engine.num_steps - before < 100
    assert paged.desk.admission.num_tokens == 0


def test_the_next_answer_comes_from_the_next_champion_and_says_so(tiny_model: Path, other_model: Path) -> None:
    with with_base(tiny_model, other_model) as served, Writer.open(other_model, precision="fp32", num_rows=NUM_ROWS) as writer:
        assert "answer-v8-" in Visit(served.url).generate("The history of").note()
        served.desk.swap(Champion(9, "fp32", writer, lambda: None))
        assert "answer-v9-" in Visit(served.url).generate("The history of").note()


def test_a_version_whose_evaluation_says_little_has_a_page_too(paged: Served) -> None:
    little = {"base": {"bits_per_byte": 2.5}, "trained": {"bits_per_byte": 2.0}}
    assert "<td>2.0000</td>" in report(replace(paged.desk.champion, metrics=little))
    assert "No evaluation was kept" in report(replace(paged.desk.champion, metrics={}))


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as browser:
        yield browser


def text(browser: Browser, part: str) -> str:
    return browser.find(f"//*[@id='{part}']").text


def ask(browser: Browser, prompt: str, **numbers: int) -> None:
    """Type a prompt and numbers into sliders, and click."""
    for slider, value in numbers.items():
        number = browser.find(f"//*[@id='{slider.replace('_', '-')}']//input[@type='number']")
        browser.driver.execute_script("arguments[0].select()", number)
        number.send_keys(f"{value}\t")
    browser.find("//*[@id='prompt']//textarea").send_keys(prompt)
    browser.click("//button[@id='generate']")


@needs_browser
def test_a_person_sees_text_come_and_stops_it(browser: Browser, paged: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = hold_steps(paged, monkeypatch)
    engine = paged.desk.champion.writer.engine
    browser.open(f"{paged.url}{PATH}")
    browser.shows("Prosemill", "<tiny>", "version 8", "fp32", "bits per byte", f"{METRICS['trained']['bits_per_byte']:.4f}")
    assert browser.driver.title == "Prosemill"
    assert browser.hosts() == {urlsplit(paged.url).netloc}
    before = engine.num_steps
    ask(browser, "The history of", new_tokens=200, temperature=0)
    sizes = set[int]()

    def has_grown() -> bool:
        steps.release(2)
        sizes.add(len(text(browser, "answer")))
        return len(sizes) > 5

    browser.until(has_grown, "the text grows")
    assert min(sizes) < max(sizes)
    assert engine.num_running == 1
    browser.click("//button[@id='stop']")
    until(lambda: steps.release() or is_empty(paged), "the row or the place is held")  # type: ignore[func-returns-value]
    assert 0 < engine.num_steps - before < 200
    browser.until(lambda: text(browser, "note") == "Stopped", "what was done")
    written = text(browser, "answer")
    assert "The history of" in written
    assert len(written) >= max(sizes), "what was written stays"
    assert browser.find("//button[@id='generate']").is_enabled()
    assert not browser.find("//button[@id='stop']").is_enabled()


@needs_browser
def test_what_was_stopped_says_so_however_late_it_ends(browser: Browser, paged: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = hold_steps(paged, monkeypatch)
    pass_on = Passage.__call__

    async def pass_on_late(self: Passage, scope: Any, receive: Any, send: Any) -> None:
        is_cancel = scope["path"].endswith("/cancel")
        await asyncio.sleep(1 if is_cancel else 0)
        await pass_on(self, scope, receive, send)
        steps.release(200 if is_cancel else 0)

    monkeypatch.setattr(Passage, "__call__", pass_on_late)
    browser.open(f"{paged.url}{PATH}")
    ask(browser, "The history of", new_tokens=200, temperature=0)
    browser.until(lambda: text(browser, "note") == "Writing …", "it is written")
    browser.click("//button[@id='stop']")
    until(lambda: is_empty(paged), "the row or the place is held")
    browser.until(lambda: text(browser, "note") == "Stopped", "what was done")


@needs_browser
def test_both_models_answer_side_by_side_what_they_answer_to_all(browser: Browser, paged: Served) -> None:
    prompt = "${1+1} {{value}} <b>*bold*</b>"
    browser.open(f"{paged.url}{PATH}")
    browser.click("//button[.//*[.='More'] or .='More']")
    seed = browser.find("//*[@id='seed']//*[self::input or self::textarea]")
    assert not seed.get_property("value"), "one is drawn"
    seed.send_keys("5\t")
    ask(browser, prompt, new_tokens=12)
    browser.until(lambda: "answer-v8-" in text(browser, "note"), "the end")
    browser.until(lambda: browser.find("//button[@id='generate']").is_enabled(), "another may be asked for")
    assert "Seed 5" in text(browser, "note")
    body: dict[str, Any] = {"prompt": prompt, "max_new_tokens": 12, "seed": 5}
    expected = requests.post(f"{paged.url}/generate", json=body, timeout=LIMIT).json()["generated_text"]
    shown = {part: browser.find(f"//*[@id='{part}']//p").get_property("textContent") for part in ("answer", "base-answer")}
    assert shown["answer"] == prompt + expected
    assert str(shown["base-answer"]).startswith(prompt)
    assert shown["base-answer"] != shown["answer"]
    browser.click("//*[@id='with-base']//input")
    assert not browser.find("//*[@id='base-answer']").is_displayed()


@needs_browser
def test_a_page_that_is_opened_again_is_the_next_champions(browser: Browser, tiny_model: Path, other_model: Path, tmp_path: Path) -> None:
    write_model(tmp_path, "gpt2", tiny_model, context_size=64)
    with with_base(tiny_model, other_model) as served, Writer.open(tmp_path, precision="fp32", num_rows=NUM_ROWS) as writer:

        def longest() -> str | None:
            return browser.find("//*[@id='new-tokens']//input[@type='range']").get_attribute("max")

        browser.open(f"{served.url}{PATH}")
        browser.until(lambda: longest() == "256", "its longest answer")
        browser.shows("Base model beside it", "Base model", "version 8")
        served.desk.swap(Champion(9, "fp32", writer, lambda: None))
        browser.open(f"{served.url}{PATH}")
        browser.until(lambda: longest() == "64", "its longest answer")
        browser.shows("version 9", "No evaluation was kept")
        assert "Base model" not in browser.find("//body").text
        ask(browser, "The history of", new_tokens=8)
        browser.until(lambda: "answer-v9-" in text(browser, "note"), "the end")


@needs_browser
def test_a_closed_tab_ends_what_it_asked_for(browser: Browser, paged: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_down(paged, monkeypatch)
    browser.open(f"{paged.url}{PATH}")
    ask(browser, "The history of", new_tokens=200)
    until(lambda: not is_empty(paged), "it is not written")
    browser.open("about:blank")
    until(lambda: is_empty(paged), "the row or the place is held")


@needs_browser
def test_the_page_fits_a_narrow_screen(browser: Browser, paged: Served) -> None:
    size = {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.open(f"{paged.url}{PATH}")
    ask(browser, "The history of" + "x" * 100, new_tokens=40)
    browser.until(lambda: "answer-v8-" in text(browser, "note"), "the end")
    assert browser.driver.execute_script("return document.documentElement.scrollWidth") <= 360


@needs_browser
def test_a_key_is_typed_into_the_browsers_own_question(browser: Browser, keyed: Served) -> None:
    browser.open(f"{keyed.url}{PATH}".replace("://", f"://anybody:{KEY}@"))  # answers the browser's question; from now on it sends the key
    browser.open(f"{keyed.url}{PATH}")
    ask(browser, "The history of", new_tokens=8)
    browser.until(lambda: "answer-v7-" in text(browser, "note"), "the end")
