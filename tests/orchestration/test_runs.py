"""One run works at a time, and what a crash left open on a server is closed by the next one."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import mlflow
import pytest

from prosemill.errors import ProsemillError
from prosemill.locks import BusyError, alone
from prosemill.orchestration import page, runs
from prosemill.orchestration.runs import CancelledInPage, at_work, close_lost_flow_runs, close_lost_tracked_runs, mark, marks
from prosemill.tracking import open_run, tracking_uri
from prosemill.tracking.run import FINGERPRINT_TAG
from prosemill.workspace import CHECKPOINTS
from tests.conftest import environment
from tests.test_supervised import is_alive
from tests.waiting import LIMIT, until

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import State

ROOT = Path(__file__).parents[2]
NOWHERE = "http://127.0.0.1:9"  # where nobody listens
HOLDER = """
import subprocess, sys
from prosemill.orchestration.runs import at_work

with at_work("refuse", print, lambda: None) as lock:
    child = subprocess.Popen(["sleep", "120"], pass_fds=[lock], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    print(child.pid, flush=True)
    sys.stdin.readline()
    child.kill()
    child.wait()
"""


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """End a test that waits for ever."""

    def end(*_: object) -> None:
        raise AssertionError("it takes too long")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def nothing() -> None: ...


@contextmanager
def other_run() -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """Another process that is at work here until it reads a line, and a process that it has started, which inherits the lock."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HOLDER]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            yield process, child
        finally:
            process.kill()
            if is_alive(child):
                os.kill(child, signal.SIGKILL)


def test_a_second_run_is_refused_and_told_who_is_at_work(workspace: Path) -> None:
    told: list[str] = []
    with (
        other_run() as (process, _),
        pytest.raises(BusyError, match=rf"another run of the pipeline is at work \(process {process.pid} since"),
    ):
        at_work("refuse", told.append, nothing).__enter__()
    assert told == []


def test_a_second_run_waits_for_the_first(workspace: Path) -> None:
    told: list[str] = []
    num_ticks = 0

    with other_run() as (process, _):

        def tick() -> None:
            nonlocal num_ticks
            num_ticks += 1
            assert num_ticks < 30
            if num_ticks == 2:
                assert process.stdin is not None
                process.stdin.write("\n")
                process.stdin.flush()

        with at_work("wait", told.append, tick):
            until(lambda: process.poll() is not None, "it ends")
    assert num_ticks >= 2
    assert len(told) == 1, "it is told once"
    assert told[0].startswith(f"waiting: another run of the pipeline is at work (process {process.pid} since")


def test_a_wait_can_be_ended(workspace: Path) -> None:
    def tick() -> None:
        raise CancelledInPage

    with other_run() as (process, _):
        with pytest.raises(CancelledInPage), at_work("wait", lambda _: None, tick):
            raise AssertionError("the other run is still at work")
        assert process.poll() is None


def test_what_a_run_raises_ends_it_and_frees_the_workspace(workspace: Path) -> None:
    for error in (BusyError("of something else"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as raised, at_work("wait", lambda _: None, nothing):
            raise error
        assert raised.value is error
    with at_work("refuse", lambda _: None, nothing):
        pass


def test_what_a_killed_run_has_started_keeps_the_workspace(workspace: Path) -> None:
    with other_run() as (process, child):
        process.kill()
        process.wait()
        assert is_alive(child)
        with pytest.raises(BusyError):
            at_work("refuse", lambda _: None, nothing).__enter__()
        os.kill(child, signal.SIGKILL)
        until(lambda: not is_alive(child), "the child ends")
        with at_work("refuse", lambda _: None, nothing):
            pass


def test_a_killed_run_frees_the_workspace(workspace: Path) -> None:
    with other_run() as (process, child):
        os.kill(child, signal.SIGKILL)
        process.kill()
        process.wait()
        until(lambda: not is_alive(child), "the child ends")
        with at_work("refuse", lambda _: None, nothing):
            pass


@pytest.fixture
def store(workspace: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[mlflow.MlflowClient]:
    """The workspace's own tracking store."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    (workspace / ".prosemill/mlflow").mkdir(parents=True)
    (workspace / ".prosemill/mlflow/mlflow.db").write_bytes(empty_store.read_bytes())
    yield mlflow.MlflowClient(tracking_uri())
    mlflow.end_run()


def left_running(client: mlflow.MlflowClient, fingerprint: str | None) -> str:
    """The id of a tracked run that says RUNNING."""
    with open_run("0" * 16, name="first") as run:  # which makes the experiment
        experiment = client.get_run(run.run_id).info.experiment_id
    tags = {FINGERPRINT_TAG: fingerprint} if fingerprint else {}
    return str(client.create_run(experiment, tags=tags, run_name=f"run-{fingerprint}").info.run_id)


def test_a_tracked_run_that_nobody_trains_is_closed_and_goes_on_later(store: mlflow.MlflowClient) -> None:
    fingerprint = "a" * 16
    run_id = left_running(store, fingerprint)
    with alone(CHECKPOINTS / f"{fingerprint}.lock", "training"):
        assert close_lost_tracked_runs() == []
        assert store.get_run(run_id).info.status == "RUNNING"
    assert close_lost_tracked_runs() == [f"run-{fingerprint}"]
    assert store.get_run(run_id).info.status == "KILLED"
    assert close_lost_tracked_runs() == []
    with open_run(fingerprint, name="again") as run:
        assert run.run_id == run_id
        assert store.get_run(run_id).info.status == "RUNNING"
    assert store.get_run(run_id).info.status == "FINISHED"


def test_tracked_runs_of_others_are_left(store: mlflow.MlflowClient, tmp_path: Path) -> None:
    run_ids = [left_running(store, "b" * 16), left_running(store, None)]
    with alone(CHECKPOINTS / f"{'c' * 16}.lock", "training"):
        pass
    shared = tmp_path / "shared.db"  # which other workspaces may use as well
    shared.write_bytes((tmp_path / ".prosemill/mlflow/mlflow.db").read_bytes())
    with environment({"MLFLOW_TRACKING_URI": f"sqlite:///{shared}"}):
        assert close_lost_tracked_runs() == []
    assert {store.get_run(run_id).info.status for run_id in run_ids} == {"RUNNING"}
    assert close_lost_tracked_runs() == [f"run-{'b' * 16}"], "it is no training's, and the workspace's own"
    assert store.get_run(run_ids[1]).info.status == "RUNNING", "it is not of Prosemill"


def test_without_tracked_runs_there_is_nothing_to_close(store: mlflow.MlflowClient) -> None:
    assert close_lost_tracked_runs() == []


def test_a_tracking_server_that_does_not_answer_is_one_line(workspace: Path) -> None:
    values = {"MLFLOW_TRACKING_URI": NOWHERE, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    with environment(values), pytest.raises(ProsemillError, match="does not answer"):
        close_lost_tracked_runs()


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A Prefect server with a store of its own."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=LIMIT):
        yield


@pytest.fixture
def client(prefect_server: None, workspace: Path) -> Iterator["SyncPrefectClient"]:
    """A client of the server, while an empty folder is the workspace."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as found:
        yield found


def left_open(client: "SyncPrefectClient", state: "State[None]", *, num_tasks: int = 0) -> UUID:
    """The id of a flow run in a state, with running tasks and one that has ended, and the mark of a process that is gone."""
    from prefect import flow, task
    from prefect.states import Completed, Running

    @flow
    def pipeline() -> None: ...

    @task
    def stage() -> None: ...

    flow_run = client.create_flow_run(pipeline, name=f"{state.name} run")
    client.set_flow_run_state(flow_run.id, state, force=True)
    for number in range(num_tasks):
        client.create_task_run(stage, flow_run.id, dynamic_key=str(number), state=Running())
    if num_tasks:
        client.create_task_run(stage, flow_run.id, dynamic_key="ended", state=Completed())
    with alone(marks() / f"{flow_run.id}.lock", "test"):
        pass
    return flow_run.id


def state_of(client: "SyncPrefectClient", flow_run: UUID) -> str | None:
    state = client.read_flow_run(flow_run).state
    return state.name if state else None


def task_states(client: "SyncPrefectClient", flow_run: UUID) -> list[str]:
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    found = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run])))
    return sorted(run.state.name or "" for run in found if run.state)


def test_a_flow_run_whose_process_is_gone_is_closed(client: "SyncPrefectClient") -> None:
    from prefect.states import Running

    flow_run = left_open(client, Running(), num_tasks=2)
    assert close_lost_flow_runs(client) == ["Running run"]
    state = client.read_flow_run(flow_run).state
    assert state is not None
    assert (state.name, state.is_crashed(), state.message) == ("Crashed", True, runs.ENDED)
    assert task_states(client, flow_run) == ["Completed", "Crashed", "Crashed"]
    assert not list(marks().iterdir())
    assert close_lost_flow_runs(client) == []


def test_a_flow_run_that_was_about_to_be_cancelled_is_cancelled(client: "SyncPrefectClient") -> None:
    from prefect.states import Cancelling

    flow_run = left_open(client, Cancelling(), num_tasks=1)
    assert close_lost_flow_runs(client) == ["Cancelling run"]
    assert (state_of(client, flow_run), task_states(client, flow_run)) == ("Cancelled", ["Completed", "Crashed"])


def test_a_flow_run_whose_process_lives_stays(client: "SyncPrefectClient") -> None:
    from prefect.states import Running

    flow_run = left_open(client, Running(), num_tasks=1)
    mark(flow_run)
    try:
        assert close_lost_flow_runs(client) == []
        assert (state_of(client, flow_run), task_states(client, flow_run)) == ("Running", ["Completed", "Running"])
    finally:
        runs._MARKS.close()  # as the end of the process does
    assert close_lost_flow_runs(client) == ["Running run"]


def test_a_flow_run_that_has_ended_keeps_its_state(client: "SyncPrefectClient") -> None:
    from prefect.states import Completed, Failed

    states: list[State[None]] = [Completed(name="Refused"), Failed()]
    found = {state.name: left_open(client, state) for state in states}
    assert close_lost_flow_runs(client) == []
    assert {name: state_of(client, flow_run) for name, flow_run in found.items()} == {"Refused": "Refused", "Failed": "Failed"}
    assert not list(marks().iterdir())


def test_a_flow_run_that_the_server_does_not_know_is_forgotten(client: "SyncPrefectClient") -> None:
    from prefect.states import Running

    with alone(marks() / f"{UUID(int=0)}.lock", "test"):  # the first that is looked at
        pass
    left_open(client, Running())
    assert close_lost_flow_runs(client) == ["Running run"], "the others are closed all the same"
    assert not list(marks().iterdir())


def test_a_run_on_another_server_is_left_until_that_one_is_used_again(client: "SyncPrefectClient", monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.states import Running

    left_open(client, Running())
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("PREFECT_API_URL", f"{NOWHERE}/api")
        assert close_lost_flow_runs(client) == []
    assert close_lost_flow_runs(client) == ["Running run"]


def test_the_workspaces_own_server_is_the_same_at_every_port(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(workspace / ".prosemill/prefect"))
    found = set()
    for port in (4200, 4201):
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{port}/api")
        found.add(marks())
    assert len(found) == 1
    monkeypatch.setenv("PREFECT_HOME", str(workspace / "elsewhere"))
    assert marks() not in found


def test_a_server_that_is_away_leaves_it_to_the_next_run(client: "SyncPrefectClient") -> None:
    from httpx import HTTPError
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings
    from prefect.states import Running

    from prosemill.orchestration.page import at_once

    flow_run = left_open(client, Running())
    with temporary_settings({PREFECT_API_URL: f"{NOWHERE}/api"}), get_client(sync_client=True) as away, at_once(), pytest.raises(HTTPError):
        close_lost_flow_runs(away)
    assert close_lost_flow_runs(client) == ["Running run"]
    assert state_of(client, flow_run) == "Crashed"


def test_a_run_sees_that_it_was_cancelled_in_the_page(client: "SyncPrefectClient", monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.states import Cancelled, Cancelling, Running

    monkeypatch.setattr(runs, "INTERVAL", 0.0)
    flow_run = left_open(client, Running())
    look = runs.Cancellation(flow_run)
    look()
    states: list[State[None]] = [Cancelling(), Cancelled()]
    for state in states:
        client.set_flow_run_state(flow_run, state, force=True)
        with pytest.raises(CancelledInPage) as raised:
            look()
        assert raised.value.args == (flow_run,)


def test_a_run_that_was_deleted_in_the_page_ends_as_a_cancelled_one(client: "SyncPrefectClient") -> None:
    unknown = uuid4()
    with pytest.raises(CancelledInPage):
        runs.Cancellation(unknown)()
    runs.say_cancelled(client, unknown)


def test_a_run_that_was_cancelled_in_the_page_says_so_at_the_end(client: "SyncPrefectClient") -> None:
    from prefect.states import Crashed

    flow_run = left_open(client, Crashed())  # as Prefect calls it
    runs.say_cancelled(client, flow_run)
    assert state_of(client, flow_run) == "Cancelled"


def test_a_run_looks_from_time_to_time_whether_it_was_cancelled(client: "SyncPrefectClient") -> None:
    from prefect.states import Cancelled, Running

    flow_run = left_open(client, Running())
    look = runs.Cancellation(flow_run)
    look()
    client.set_flow_run_state(flow_run, Cancelled(), force=True)
    look()  # within INTERVAL it does not ask


def test_a_server_that_is_away_cancels_nothing(prefect_server: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setattr(runs, "INTERVAL", 0.0)
    with temporary_settings({PREFECT_API_URL: f"{NOWHERE}/api"}):
        runs.Cancellation(uuid4())()


def test_a_frozen_server_cancels_nothing_and_costs_little(prefect_server: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setattr(page, "ANSWER_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as frozen:  # which takes calls and never answers
        address = f"http://127.0.0.1:{frozen.getsockname()[1]}/api"
        begin = time.monotonic()
        with temporary_settings({PREFECT_API_URL: address}):
            runs.Cancellation(uuid4())()
    assert 0.4 < time.monotonic() - begin < 50, "Prefect's clients wait for a minute"
