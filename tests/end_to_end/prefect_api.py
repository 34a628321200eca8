"""A Prefect server of a clone's own, seen through its HTTP interface, as somebody outside of the clone would see it."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

from prosemill.orchestration.environment import AUTH, HOME
from tests.ports import free_port
from tests.waiting import LIMIT

SERVE = """
import os, sys
from prosemill.orchestration.environment import LOGS, prefect_environment, server_command, wait_for
from prosemill.supervised import supervised
from prosemill.telemetry import switch_off
switch_off()
os.environ.update(prefect_environment(sys.argv[1]))
with supervised(server_command(sys.argv[1]), LOGS / "server.log") as process:
    wait_for(f"{sys.argv[1]}/api/health", process, "the server", LOGS / "server.log")
    print("answers", flush=True)
    process.wait()
"""


class PrefectApi:
    """Calls to a server."""

    def __init__(self, address: str, auth: str) -> None:
        self.address, self.auth = address, auth
        self.session = requests.Session()
        # While its database is locked the server asks to come back, as Prefect's own client does.
        busy = Retry(total=8, backoff_factor=0.25, status_forcelist=[HTTPStatus.SERVICE_UNAVAILABLE], allowed_methods=None)
        self.session.mount(address, HTTPAdapter(max_retries=busy))
        user, _, password = auth.partition(":")
        self.session.auth = (user, password)
        token = self.session.get(f"{address}/api/csrf-token", params={"client": "tests"}, timeout=LIMIT).json()["token"]
        self.session.headers.update({"Prefect-Csrf-Token": token, "Prefect-Csrf-Client": "tests"})

    def call(self, method: str, path: str, **content: Any) -> Any:
        """What the server answers, parsed; the test fails on an error's status."""
        answer = self.session.request(method, f"{self.address}/api{path}", json=content if method != "GET" else None, timeout=LIMIT)
        assert answer.ok, (path, answer.status_code, answer.text)
        return answer.json() if answer.content else None

    def flow_runs(self) -> list[dict[str, Any]]:
        """All flow runs, the newest first."""
        found: list[dict[str, Any]] = self.call("POST", "/flow_runs/filter", sort="START_TIME_DESC")
        return found

    def task_states(self, flow_run: str) -> dict[str, str | None]:
        """Names of the states of a flow run's tasks; a task that has just been made has none yet."""
        found = self.call("POST", "/task_runs/filter", flow_runs={"id": {"any_": [flow_run]}})
        return {run["name"]: run["state_name"] for run in found}

    def artifacts(self, flow_run: str) -> dict[str, dict[str, Any]]:
        """A flow run's artifacts by key, the newest of each."""
        found = self.call("POST", "/artifacts/filter", artifacts={"flow_run_id": {"any_": [flow_run]}}, sort="UPDATED_DESC")
        return {artifact["key"]: artifact for artifact in reversed(found)}

    def logs(self, flow_run: str) -> list[str]:
        """Lines of a flow run's log."""
        found = self.call("POST", "/logs/filter", logs={"flow_run_id": {"any_": [flow_run]}}, sort="TIMESTAMP_ASC")
        return [row["message"] for row in found]


@contextmanager
def serving(folder: Path, environment: dict[str, str]) -> Iterator[tuple[PrefectApi, "subprocess.Popen[str]"]]:
    """A server in a folder, and the process that holds it: the server ends with that."""
    address = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-c", SERVE, address]
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "answers\n"
            yield PrefectApi(address, (folder / AUTH).read_text(encoding="ascii")), process
        finally:
            process.kill()


def client_environment(api: PrefectApi, folder: Path) -> dict[str, str]:
    """Environment variables that make a program in a folder a client of the server."""
    return {
        "PREFECT_API_URL": f"{api.address}/api",
        "PREFECT_API_AUTH_STRING": api.auth,
        "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED": "true",
        "PREFECT_HOME": str(folder / HOME),
    }
