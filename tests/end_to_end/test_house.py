"""`prosemill up` in a clone: where its state lies, who may ask its servers, what it deploys, and that nothing of it stays behind."""

import json
import re
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from tests.end_to_end.conftest import Clone
from tests.end_to_end.house import (
    PORT_OPTIONS,
    House,
    HouseClone,
    living,
    make_house_clone,
    port_options,
    running_house,
    started_house,
    told,
)
from tests.end_to_end.prefect_api import PrefectApi
from tests.ports import free_ports
from tests.waiting import until

FOREIGN = "http://evil.example"
TIMEOUT = 30.0
STATUS = ("git", "status", "--porcelain", "--ignored")
SOCKETS = ("events/in", "events/out", "logs/out", "task_runs/subscriptions/scheduled", "work_pools/prosemill/workers/connect")


@pytest.fixture(scope="module")
def house(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A house for all tests of this module; Ctrl-C ends it, and whatever ran in it called nobody outside."""
    folder = tmp_path_factory.mktemp("house")
    clone = make_house_clone(folder, finished)
    # As `make -C clone up` leaves it, PWD names the folder that the user was in.
    with running_house(clone, folder / "up.log", PWD=str(folder)) as house:
        yield house
    assert not (clone.folder / ".prosemill/house.json").exists(), "it says where servers are that are gone"
    assert not clone.spy_report.exists(), clone.spy_report.read_text(encoding="utf-8")


@pytest.fixture
def clone(tmp_path: Path) -> HouseClone:
    """A clone in which nothing has run yet."""
    return make_house_clone(tmp_path)


@pytest.fixture
def own_clone(finished: Path, tmp_path: Path) -> HouseClone:
    """A copy of the finished workspace for a house of its own."""
    return make_house_clone(tmp_path, finished)


def test_the_clones_own_code_runs(house: House) -> None:
    commands = told(house.processes(), psutil.Process.cmdline).values()
    supervisors = {part for command in commands for part in command if part.endswith("supervised.py")}
    assert supervisors == {str(house.clone.folder / "prosemill/supervised.py")}


def test_its_state_lies_in_one_folder_that_git_ignores(house: House, finished: Path) -> None:
    now, before = (set(Clone(folder).run(*STATUS).splitlines()) for folder in (house.clone.folder, finished / "clone"))
    assert "!! .prosemill/" in now
    assert [line for line in now - before if "__pycache__" not in line] == []
    assert list(house.clone.home.rglob("*")) == []


def test_the_password_can_be_read_by_its_owner_alone_and_stands_nowhere_else(house: House) -> None:
    assert stat.S_IMODE(house.auth_file.stat().st_mode) == 0o600
    password = house.auth.partition(":")[2]
    assert len(password) >= 32
    commands = told(house.processes(), psutil.Process.cmdline).values()
    assert not [command for command in commands if password in " ".join(command)]
    state = [path for path in (house.clone.folder / ".prosemill").rglob("*") if path.is_file() and path != house.auth_file]
    assert not [path for path in [house.log, *state] if password.encode() in path.read_bytes()]


def test_every_server_listens_on_the_loopback_interface_alone(house: House) -> None:
    connections = told(house.processes(), lambda process: process.net_connections("inet")).values()
    listening = {tuple(each.laddr) for of_one in connections for each in of_one if each.status == psutil.CONN_LISTEN}
    assert {("127.0.0.1", port) for port in house.ports[:2]} <= listening, "the service has no champion yet"
    assert {ip for ip, _ in listening} <= {"127.0.0.1", "::1"}


def test_browsers_may_ask_prefect_from_its_own_page_alone(house: House) -> None:
    for origin, allowed in ((FOREIGN, None), ("null", None), (house.prefect, house.prefect)):
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        preflight = requests.options(f"{house.prefect}/api/flows/count", headers=headers, timeout=TIMEOUT)
        read = requests.get(f"{house.prefect}/api/health", headers={"Origin": origin}, timeout=TIMEOUT)
        assert [answer.headers.get("access-control-allow-origin") for answer in (preflight, read)] == [allowed, allowed]


def test_prefect_refuses_whom_it_does_not_know(house: House) -> None:
    with house.session() as session:
        assert session.post(f"{house.prefect}/api/flows/count", json={}, timeout=TIMEOUT).status_code == 200
        for auth in (None, ("prosemill", "wrong"), ("prosemill", "")):
            session.auth = auth
            assert session.post(f"{house.prefect}/api/flows/count", json={}, timeout=TIMEOUT).status_code == 401
            assert session.get(f"{house.prefect}/api/admin/settings", timeout=TIMEOUT).status_code == 401


def test_prefect_refuses_a_change_without_a_csrf_token(house: House) -> None:
    with house.session() as session:
        count = f"{house.prefect}/api/flows/count"
        for wrong in ({"Prefect-Csrf-Token": "made-up"}, {"Prefect-Csrf-Client": "another"}):
            assert session.post(count, json={}, headers=wrong, timeout=TIMEOUT).status_code == 403
        del session.headers["Prefect-Csrf-Token"]
        assert session.post(count, json={}, timeout=TIMEOUT).status_code == 403


def greet(house: House, path: str, first_message: dict[str, str] | str, protocol: str | None = "prefect") -> Any:
    """What a websocket answers to a client's first message."""
    address = f"{house.prefect.replace('http', 'ws')}/api/{path}"
    with connect(address, subprotocols=[Subprotocol(protocol)] if protocol else None) as websocket:
        websocket.send(first_message if isinstance(first_message, str) else json.dumps(first_message))
        return json.loads(websocket.recv(TIMEOUT))


@pytest.mark.parametrize("path", SOCKETS)
def test_a_websocket_opens_for_the_password_alone(house: House, path: str) -> None:
    assert greet(house, path, {"type": "auth", "token": house.auth}) == {"type": "auth_success"}
    for message in ({"type": "auth"}, {"type": "auth", "token": "prosemill:wrong"}, {"type": "auth", "token": "ключ"}, {"type": "hello"}):
        with pytest.raises(ConnectionClosed):
            greet(house, path, message)
    with pytest.raises(InvalidStatus):
        greet(house, path, {"type": "auth", "token": house.auth}, protocol=None)


def test_mlflow_answers_to_its_own_name_and_to_its_own_page_alone(house: House) -> None:
    port = house.ports[1]
    ask = f"{house.mlflow}/api/2.0/mlflow/experiments/search"
    for host, status in (
        (f"127.0.0.1:{port}", 200),
        (f"localhost:{port}", 200),
        ("10.evil.example", 403),
        (f"10.evil.example:{port}", 403),
    ):
        answer = requests.post(ask, json={"max_results": 1}, headers={"Host": host}, auth=known(house), timeout=TIMEOUT)
        assert (host, answer.status_code) == (host, status)
    headers = {"Origin": FOREIGN}
    assert requests.post(ask, json={"max_results": 1}, headers=headers, auth=known(house), timeout=TIMEOUT).status_code == 403


def known(house: House) -> tuple[str, str]:
    """User and password as `requests` takes them."""
    user, _, password = house.auth.partition(":")
    return user, password


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("POST", "/api/2.0/mlflow/experiments/search"),
        ("POST", "/ajax-api/2.0/mlflow/runs/search"),
        ("GET", "/get-artifact?path=model&run_uuid=1"),
        ("GET", "/api/2.0/mlflow-artifacts/artifacts"),
        ("POST", "/graphql"),
        ("POST", "/v1/traces"),
        ("GET", "/signup"),
    ],
)
def test_mlflow_refuses_whom_it_does_not_know(house: House, method: str, path: str) -> None:
    user, password = known(house)
    for auth in (None, (user, "wrong"), (user, ""), ("admin", password)):
        answer = requests.request(method, house.mlflow + path, json={} if method == "POST" else None, auth=auth, timeout=TIMEOUT)
        assert answer.status_code == 401
    answer = requests.request(method, house.mlflow + path, json={} if method == "POST" else None, auth=(user, password), timeout=TIMEOUT)
    assert answer.status_code != 401


def test_the_flows_are_deployed_with_their_schedule_limit_and_trigger(house: House) -> None:
    deployments = {deployment["name"]: deployment for deployment in house.api().call("POST", "/deployments/filter")}
    assert set(deployments) == {"nightly", "on-demand", "small", "promotion"}
    nightly = deployments["nightly"]
    ((cron, active),) = [(schedule["schedule"], schedule["active"]) for schedule in nightly["schedules"]]
    assert (cron["cron"], cron["timezone"], active, nightly["paused"]) == ("0 2 * * *", "UTC", True, False)
    assert nightly["global_concurrency_limit"]["limit"] == 1
    assert nightly["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    (automation,) = house.api().call("POST", "/automations/filter")
    assert automation["enabled"]
    assert automation["trigger"]["expect"] == ["prosemill.promotion.requested"]
    (action,) = automation["actions"]
    assert (action["type"], action["deployment_id"]) == ("run-deployment", deployments["promotion"]["id"])


def test_the_nightly_run_is_scheduled(house: House) -> None:
    """Prefect's scheduler does nothing, and says so nowhere, with SQLAlchemy from 2.1 on."""
    deployments = {"name": {"any_": ["nightly"]}}

    def starts() -> list[datetime]:
        runs = house.api().call(
            "POST", "/flow_runs/filter", deployments=deployments, flow_runs={"state": {"type": {"any_": ["SCHEDULED"]}}}
        )
        return [datetime.fromisoformat(run["expected_start_time"]) for run in runs]

    until(lambda: bool(starts()), "a run is scheduled")
    assert min(starts()) > datetime.now(UTC)
    assert {(start.hour, start.minute) for start in starts()} == {(2, 0)}


def test_runs_work_in_this_workspace_wherever_it_was_started_from(house: House) -> None:
    steps = [step for deployment in house.api().call("POST", "/deployments/filter") for step in deployment["pull_steps"]]
    (folder,) = {step["prefect.deployments.steps.set_working_directory"]["directory"] for step in steps}
    assert Path(folder).resolve() == house.clone.folder.resolve()


def test_without_a_champion_nothing_is_served_and_it_says_so(house: House) -> None:
    assert "Service  comes with the first champion" in house.log.read_text()
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{house.service}/livez", timeout=TIMEOUT)


def test_a_second_house_in_the_same_workspace_is_refused(house: House) -> None:
    error = failed(house.clone.up(*port_options(free_ports(len(PORT_OPTIONS)))))
    assert error.startswith("error: another house (`prosemill up`) is at work")
    assert str(house.process.pid) in error
    assert requests.get(f"{house.prefect}/api/health", timeout=TIMEOUT).ok, "the first one goes on"


def test_a_deployments_run_that_is_cancelled_in_the_page_ends(house: House) -> None:
    api, clone = house.api(), house.clone
    run = start_training(api)
    until(lambda: api.task_states(run).get("train") == "Running" and "stages.train" in stages_of(clone).values(), "it trains")
    steps = {process for process in clone.processes() if "--single-item" in process.cmdline()} | stages_of(clone).keys()
    api.call("POST", f"/flow_runs/{run}/set_state", state={"type": "CANCELLING"})
    until(lambda: not living(steps), "no process of the pipeline is left")
    until(lambda: api.call("GET", f"/flow_runs/{run}")["state"]["type"] == "CANCELLED", "it is cancelled")


def start_training(api: PrefectApi) -> str:
    """Have the worker run a deployment that trains for minutes; the flow run's id."""
    deployment = api.call("GET", "/deployments/name/pipeline/on-demand")["id"]
    parameters = {"overrides": ["train.max_steps=30000"]}
    run = api.call("POST", f"/deployments/{deployment}/create_flow_run", parameters=parameters, state={"type": "SCHEDULED"})
    return str(run["id"])


def stages_of(clone: HouseClone) -> dict[psutil.Process, str]:
    """The processes of a clone's stages, by the module that they run."""
    commands = told(clone.processes(), psutil.Process.cmdline)
    return {process: command[-1] for process, command in commands.items() if command and command[-1].startswith("stages.")}


def test_a_port_that_cannot_be_had_is_one_line(clone: HouseClone) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        prefect, _, service = free_ports(len(PORT_OPTIONS))
        error = failed(clone.up(*port_options([prefect, taken, service])))
    assert re.search(rf"^error: .*\b{taken}\b.*--mlflow-port", error)
    assert clone.processes() == set()


def test_a_wrong_schedule_is_said_in_one_line(clone: HouseClone) -> None:
    path = clone.folder / "prefect.yaml"
    text = path.read_text(encoding="utf-8")
    assert '"0 2 * * *"' in text
    path.write_text(text.replace('"0 2 * * *"', '"0 25 * * *"'), encoding="utf-8")
    error = failed(clone.up(*port_options(free_ports(len(PORT_OPTIONS)))), after=("made a password",))
    assert all(part in error for part in ("prefect.yaml", "nightly", "0 25 * * *"))
    assert not re.search("[│╭╰]|Traceback", error), f"not for people: {error}"
    assert clone.processes() == set()


def test_a_house_ends_in_one_line_when_a_server_of_it_dies(own_clone: HouseClone, tmp_path: Path) -> None:
    with started_house(own_clone, tmp_path / "up.log") as house:
        commands = told(house.processes(), psutil.Process.cmdline)
        (server,) = [process for process, command in commands.items() if command[1:4] == ["-m", "mlflow", "server"]]
        server.kill()
        until(lambda: house.is_over() and not own_clone.processes(), "the house ends")
        assert house.process.returncode == 1
        assert house.log.read_text().splitlines()[-1] == "error: mlflow has ended: see the end of .prosemill/logs/mlflow.log"


def test_a_house_that_is_killed_while_a_stage_works_leaves_no_process(house: House, own_clone: HouseClone, tmp_path: Path) -> None:
    """With a tracking server that the user names, as it does without one: it runs none of its own, and needs no port for one."""
    prefect, service = free_ports(2)
    named = {"MLFLOW_TRACKING_URI": house.mlflow, **house.mlflow_environment}
    with started_house(own_clone, tmp_path / "up.log", (prefect, house.ports[1], service), **named) as killed:
        assert f"MLflow   {house.mlflow}\n" in killed.log.read_text()
        assert not [command for command in told(own_clone.processes(), psutil.Process.cmdline).values() if "mlflow" in command]
        start_training(killed.api())
        until(lambda: bool(stages_of(own_clone)), "a stage works")
        started = killed.processes()
        killed.process.kill()
        assert killed.process.wait() == -signal.SIGKILL
        until(lambda: not living(started | own_clone.processes()), "nothing of the house is left")


def failed(finished: "subprocess.CompletedProcess[str]", after: tuple[str, ...] = ()) -> str:
    """The one line of a `prosemill up` that ends with an error; `after` begins the lines that may come before."""
    assert finished.returncode == 1, finished.stderr
    *before, error = finished.stderr.splitlines()
    assert [line for line in before if not line.startswith(after)] == []
    assert finished.stdout == ""
    assert error.startswith("error: ")
    return error
