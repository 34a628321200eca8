"""A run's page shows what the pipeline has measured; a server that does not take it costs the run nothing."""

import base64
import inspect
import io
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from prosemill.console import progress
from prosemill.errors import ProsemillError, TemporaryError
from prosemill.orchestration import page as page_module
from prosemill.orchestration.page import Page, StageRow, duration_text, quiet_mistakes, with_pictures
from prosemill.registry.gate import Rule, Verdict
from prosemill.registry.store import Version

ROOT = Path(__file__).parents[2]
KEY = re.compile(r"[a-z0-9-]+")  # which the page takes


class Server:
    """Stands for the functions by which Prefect's server is told of artifacts."""

    def __init__(self) -> None:
        self.created: dict[str, dict[str, Any]] = {}
        """Arguments by the artifact's key."""
        self.ids: dict[UUID, str] = {}
        self.bars: dict[str, list[float]] = {}
        """What each bar showed, in order."""
        self.is_away = False

    def replace(self, function: str, monkeypatch: pytest.MonkeyPatch) -> None:
        import prefect.artifacts

        signature = inspect.signature(getattr(prefect.artifacts, function))

        def call(*arguments: Any, **options: Any) -> UUID | None:
            given = signature.bind(*arguments, **options).arguments
            if function.startswith("create"):
                return self.create(**given)
            self.update(**given)
            return None

        monkeypatch.setattr(prefect.artifacts, function, call)

    def create(self, key: str, **content: Any) -> UUID:
        self._refuse()
        assert KEY.fullmatch(key)
        assert key not in self.created, "one artifact for each thing"
        self.created[key] = content
        found = uuid4()
        self.ids[found] = key
        if "progress" in content:
            self.bars[key] = [content["progress"]]
        return found

    def update(self, artifact_id: UUID, progress: float, **_: Any) -> None:
        self._refuse()
        self.bars[self.ids[artifact_id]].append(progress)

    def _refuse(self) -> None:
        from httpx import ConnectError

        if self.is_away:
            raise ConnectError("away")


class Clock:
    """Stands for the module `time`."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    found = Server()
    kinds = ("table", "markdown", "link", "progress")
    for function in (*(f"create_{kind}_artifact" for kind in kinds), "update_progress_artifact"):
        found.replace(function, monkeypatch)
    return found


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(page_module, "time", found)
    return found


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (0.26, "0.3 s"), (59, "59.0 s"), (60, "1.0 min"), (254, "4.2 min"), (3600, "1.0 h"), (72 * 3600, "72.0 h")],
)
def test_a_duration_is_as_people_say_it(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_pictures_that_are_there_stand_in_the_report(workspace: Path) -> None:
    Path("reports").mkdir()
    picture = b"\x89PNG loss"
    Path("reports/loss-curve_1.png").write_bytes(picture)
    text = "# Report\n![The loss](loss-curve_1.png) ![](loss-curve_1.png)\n{}\n"
    others = "![Gone](gone.png) [a link](loss-curve_1.png) ![Far](https://example.org/loss-curve_1.png) ![Up](../loss-curve_1.png) 5 %"
    inside = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    assert with_pictures(text.format(others)) == f"# Report\n![The loss]({inside}) ![]({inside})\n{others}\n"


def test_a_report_without_pictures_is_as_it_was(workspace: Path) -> None:
    text = (ROOT / "reports/evaluation.md").read_text(encoding="utf-8")
    assert with_pictures(text) == text, "there is no reports/ here"


def test_the_page_shows_the_pipelines_own_results(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(page_module, "experiment_id", lambda: "7")
    page = Page()
    page.show_stages([StageRow("download", "unchanged", 0.5), StageRow("train", "failed", 120)])
    page.show_evaluation()
    page.show_version(Version(3, "run", "model", {}, ()), "http://127.0.0.1:5000")
    page.show_verdict(Verdict(3, None, (Rule("lineage", "whole", "whole", passed=True), Rule("bits per byte", "2.1", "2.0", passed=False))))
    page.show_bento(3, ["prosemill:3-c0ffee: 543.1 MB in /bentos", "bentoml serve prosemill:3-c0ffee"])
    found = server.created
    assert set(found) == {"stages", "metrics", "report", "mlflow-run", "registered-version", "gate", "bento"}
    assert found["stages"]["table"] == [
        {"stage": "download", "result": "unchanged", "duration": "0.5 s"},
        {"stage": "train", "result": "failed", "duration": "2.0 min"},
    ]
    assert {"metric", "base", "trained"} <= set(found["metrics"]["table"][0])
    assert found["report"]["markdown"].count("](data:image/png;base64,") > 0
    assert ".png)" not in found["report"]["markdown"], "every picture is inside"
    assert found["mlflow-run"]["link"] == "http://127.0.0.1:5000/#/experiments/7/runs/run"
    assert found["registered-version"]["link"].endswith("/versions/3")
    assert "Version 3 does not pass the gate" in found["gate"]["markdown"]
    assert "| bits per byte | 2.1 | 2.0 | failed |" in found["gate"]["markdown"]
    assert "\nbentoml serve prosemill:3-c0ffee\n" in found["bento"]["markdown"]
    assert page.unreported == []


def test_a_bar_is_one_artifact_for_each_thing_that_is_counted(server: Server, clock: Clock) -> None:
    show = Page().progress()
    for number, line in enumerate(["train: 0/60 steps in 0 s", "score base: 1/8 windows in 1 s", "train: 30/60 steps in 10 s, loss 2.1"]):
        clock.now += 10 * number
        show(line)
    assert server.bars == {"train-progress": [0, 50], "score-base-progress": [12.5]}
    assert server.created["train-progress"]["description"] == "train: 0/60 steps in 0 s", "a bar says where it is"


def test_a_bar_is_not_updated_more_often_than_one_can_see(server: Server, clock: Clock) -> None:
    show = Page().progress()
    for done in range(1, 1001):
        show(f"tokenize: {done:,}/2,000 shards in 1 s, 1,234,567 tokens/s")
        clock.now += 0.01  # ten seconds in all
    interval = page_module._Bars.INTERVAL
    shown = server.bars["tokenize-progress"]
    assert 10 / interval <= len(shown) <= 10 / interval + 1
    assert shown == sorted(shown)


def test_the_last_value_of_a_bar_always_arrives(server: Server, clock: Clock) -> None:
    show = Page().progress()
    for done in range(9):
        show(f"group: {done}/8 shards in 0 s")
    assert server.bars == {"group-progress": [0, 100]}, "at the same moment"


def test_bars_read_what_the_stages_print(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    show = Page().progress()
    for description in ("train", "score trained", "continue base"):
        with progress(description, total=2000, unit="continuations") as counted:
            counted.advance(2000, note="1,234 tokens/s")
    for line in capsys.readouterr().err.splitlines():
        show(line)
    assert server.bars == {f"{what}-progress": [100] for what in ("train", "score-trained", "continue-base")}


@pytest.mark.parametrize(
    "line", ["", "train", "error: 5/6 is no share", "Map: 3/4 documents in 2 s", "train: 0/0 steps in 0 s", "x: 1/2 in"]
)
def test_other_lines_make_no_bar(server: Server, line: str) -> None:
    Page().progress()(line)
    assert server.created == {}


def test_a_bar_that_the_server_did_not_take_comes_when_it_is_back(server: Server, clock: Clock) -> None:
    page = Page()
    show = page.progress()
    server.is_away = True
    for done in (1, 2, 3):
        show(f"train: {done}/10 steps in 1 s")
        clock.now += 5
    assert (page.unreported, server.bars) == (["train-progress"], {}), "it is remembered once"
    server.is_away = False
    for done in (4, 5):
        show(f"train: {done}/10 steps in 1 s")
        clock.now += 5
    server.is_away = True
    show("train: 10/10 steps in 1 s")
    assert (page.unreported, server.bars) == (["train-progress"], {"train-progress": [40, 50]})


@contextmanager
def broken_server(kind: str) -> Iterator[str]:
    """The address of a server that is not there, that is about to start or end, that ends while it is asked, or that is frozen."""
    thaw = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            if kind == "busy":
                self.send_error(503)
            elif kind == "frozen":
                thaw.wait()

        do_GET = do_POST  # noqa: N815 - the base class's name

        def log_message(self, format: str, *arguments: object) -> None: ...  # noqa: A002 - the base class's name

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        address = f"http://127.0.0.1:{server.server_port}/api"
        if kind == "gone":
            server.server_close()
            yield address
            return
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield address
        thaw.set()
        server.shutdown()


@pytest.mark.filterwarnings("ignore::FutureWarning")  # Prefect's, on artifacts outside of a run
@pytest.mark.parametrize("kind", ["gone", "busy", "cut", "frozen"])
def test_a_server_that_is_away_costs_little(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setattr(page_module, "ANSWER_SECONDS", 0.5)
    page = Page()
    show = page.progress()
    calls: list[Callable[[], None]] = [lambda: page.show_stages([]), lambda: show("train: 1/2 steps in 1 s")]
    with broken_server(kind) as address, temporary_settings({PREFECT_API_URL: address}):
        for call in calls:
            begin = time.monotonic()
            call()
            assert time.monotonic() - begin < 50, "Prefect's client tries for a minute"
    assert page.unreported == ["stages", "train-progress"]


def test_a_bug_is_not_taken_for_a_server_that_is_away() -> None:
    def fail() -> None:
        raise KeyError("a bug")

    page = Page()
    with pytest.raises(KeyError):
        page.reported("stages", fail)
    assert (page.unreported, page.reported("stages", lambda: 5)) == ([], 5)


def logged(error: BaseException | None, text: str, monkeypatch: pytest.MonkeyPatch, name: str) -> str:
    """What stands in the log when Prefect's engine logs a text, on an error or on none."""
    from prefect.client.schemas.objects import FlowRun, TaskRun
    from prefect.logging.loggers import flow_run_logger, task_run_logger

    stream = io.StringIO()
    logger = logging.getLogger(name)
    monkeypatch.setattr(logger, "handlers", [logging.StreamHandler(stream)])
    monkeypatch.setattr(logger, "propagate", False)
    flow_run = FlowRun(flow_id=uuid4())
    task_run = TaskRun(task_key="stage", dynamic_key="0")
    found = flow_run_logger(flow_run) if name == "prefect.flow_runs" else task_run_logger(task_run, flow_run=flow_run)
    found.error(text, exc_info=error)
    return stream.getvalue()


def raised(error: Exception) -> Exception:
    """An error that has a stack trace."""
    try:
        raise error
    except type(error) as found:
        return found


@pytest.mark.parametrize("name", ["prefect.flow_runs", "prefect.task_runs"])
def test_a_mistake_of_the_users_is_logged_without_its_trace(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    logger = logging.getLogger(name)
    monkeypatch.setattr(logger, "filters", [])
    mistakes = [raised(ProsemillError("no text: give it some")), raised(TemporaryError("no text: the network"))]
    assert "Traceback" in logged(mistakes[0], f"it failed: {mistakes[0]}", monkeypatch, name)
    quiet_mistakes()
    num_filters = len(logger.filters)
    quiet_mistakes()
    assert len(logger.filters) == num_filters
    for mistake in mistakes:
        text = logged(mistake, f"it failed: {mistake}", monkeypatch, name)
        assert text.endswith(f"{mistake}\n")
        assert text.count("\n") == 1
    for bug in (raised(ValueError("odd")), raised(KeyError("odd"))):
        text = logged(bug, "it failed: 5 %", monkeypatch, name)
        assert text.startswith("it failed: 5 %\nTraceback")


@pytest.mark.parametrize("name", ["prefect.flow_runs", "prefect.task_runs"])
def test_a_failed_state_is_logged_without_what_was_logged_before(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(logging.getLogger(name), "filters", [])
    quiet_mistakes()
    assert logged(None, "Finished in state Failed('no text: give it some\\n50 lines')", monkeypatch, name) == "Finished in state Failed\n"
    retry = "Task run failed with exception: CommandFailedError('no text\\n50 lines') - Retry 1/3 will start 10 second(s) from now"
    assert logged(None, retry, monkeypatch, name) == "Retry 1/3 will start 10 second(s) from now\n"
    for text in ("Finished in state Completed('version 3')", "5 % of (them)"):
        assert logged(None, text, monkeypatch, name) == f"{text}\n"
