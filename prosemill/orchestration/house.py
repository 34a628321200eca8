"""The whole local house: `prosemill up` runs every server of this workspace, and Ctrl-C ends them all.

    live_in(Ports(prefect=4200, mlflow=5000, service=3000))

Prefect's server with the deployments of prefect.yaml, a worker for them, MLflow's page unless `MLFLOW_TRACKING_URI` names a server that
has one, and the service of the registry's champion as soon as there is one. Every server listens on the loopback interface alone and is
watched by a supervisor, so that none outlives this process, however that ends.
"""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from prosemill.console import say
from prosemill.errors import ProsemillError
from prosemill.locks import alone
from prosemill.orchestration.environment import (
    AUTH,
    HOUSE,
    HOUSE_LOCK,
    LOCAL,
    LOGS,
    named_mlflow_server,
    prefect_environment,
    server_command,
    user_and_password,
    wait_for,
)
from prosemill.shards import write_durably
from prosemill.supervised import ask_to_end, supervised
from prosemill.workspace import STATE, TRACKING

WORK_POOL = "prosemill"
WORKER = "prefect-worker"
CHAMPION_SECONDS = 5  # between two looks at who is the champion
SERVER_GRACE = 3.0  # seconds that a server has for its end: with a page open it would take all that it gets
DRAIN_SECONDS = 1.5  # that the requests to the service have before: who presses Ctrl-C waits for them
WORKER_SECONDS = 1.5  # that the worker has for its last words to its server
DEPLOYMENTS = Path("prefect.yaml")
MLFLOW_AUTH = """\
[mlflow]
default_permission = NO_PERMISSIONS
database_uri = sqlite:///{users}
auth_cache_ttl_seconds = 300
"""
"""Whom MLflow lets in; to check a password takes it a twentieth of a second, and a page asks many times."""


@dataclass(frozen=True, kw_only=True)
class Ports:
    """Where the servers listen on this machine."""

    prefect: int
    mlflow: int
    service: int


def live_in(ports: Ports) -> None:
    """Start all servers, say where they are, and run until Ctrl-C or SIGTERM.

    Raises:
        ProsemillError: a port is taken, a server does not start or ends, or the house of this workspace runs already.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt), alone(HOUSE_LOCK, "house (`prosemill up`)"), ExitStack() as stack:
        HOUSE.unlink(missing_ok=True)  # of a house that was killed
        servers = stack.enter_context(_servers(ports))
        stack.callback(HOUSE.unlink, missing_ok=True)
        addresses = {"prefect": f"http://{LOCAL}:{ports.prefect}", "mlflow": named_mlflow_server() or f"http://{LOCAL}:{ports.mlflow}"}
        write_durably(HOUSE, json.dumps(addresses))
        say(f"Prefect  {addresses['prefect']}  (user and password: {AUTH})")
        say(f"         {addresses['prefect']}/api for its clients")
        say(f"MLflow   {addresses['mlflow']}" + ("" if named_mlflow_server() else "  (the same)"))
        service = stack.enter_context(_Service(ports.service))
        stack.callback(_end, servers)
        if (champion := _champion()) is None:
            say("Service  comes with the first champion")
        service.follow(champion)
        say("Ctrl-C ends them all")
        while True:
            time.sleep(CHAMPION_SECONDS)
            for name, process in servers.items():
                if process.poll() is not None:
                    raise ProsemillError(f"{name} has ended: see the end of {_log(name)}")
            with suppress(ProsemillError):  # a registry that does not answer now does later
                service.follow(_champion())


@contextmanager
def _servers(ports: Ports) -> Iterator[dict[str, "subprocess.Popen[str]"]]:
    """All servers, answering."""
    from prosemill.tracking.server import connect

    options = {"--prefect-port": ports.prefect, "--service-port": ports.service}
    if named_mlflow_server() is None:
        options["--mlflow-port"] = ports.mlflow
    refuse_wrong_ports(options)
    connect()  # which makes MLflow's store
    prefect, mlflow = f"http://{LOCAL}:{ports.prefect}", f"http://{LOCAL}:{ports.mlflow}"
    os.environ.update(prefect_environment(prefect))
    os.environ.setdefault("BENTOML_HOME", str((STATE / "bentoml").absolute()))
    os.environ["PROSEMILL_DRAIN"] = str(DRAIN_SECONDS)
    with ExitStack() as stack:
        commands = {"prefect-server": server_command(prefect)}
        if named_mlflow_server() is None:
            os.environ.update(mlflow_environment(ports.mlflow))
            commands["mlflow"] = mlflow_command(ports.mlflow)
        servers = {name: stack.enter_context(supervised(command, _log(name), grace=SERVER_GRACE)) for name, command in commands.items()}
        wait_for(f"{prefect}/api/health", servers["prefect-server"], "the Prefect server", _log("prefect-server"))
        _deploy()
        worker = [sys.executable, "-m", "prefect", "worker", "start", "--pool", WORK_POOL, "--type", "process"]
        servers[WORKER] = stack.enter_context(supervised(worker, _log(WORKER)))
        if "mlflow" in servers:
            wait_for(f"{mlflow}/health", servers["mlflow"], "MLflow", _log("mlflow"))
        yield servers


def _end(servers: "Mapping[str, subprocess.Popen[str]]") -> None:
    """Begin all servers' end: the worker's a moment before the others', or it would try for seconds to tell its server that it stops.

    Not one after the other: that would take more than ten seconds.
    """
    ask_to_end(servers[WORKER])
    with suppress(subprocess.TimeoutExpired):
        servers[WORKER].wait(WORKER_SECONDS)
    for process in servers.values():
        ask_to_end(process)


def _champion() -> int | None:
    from prosemill.registry.store import Registry

    return Registry.open().served().champion


class _Service:
    """The champion's service, which follows the registry by itself. One that ends is started again, one that cannot start is said once."""

    def __init__(self, port: int) -> None:
        self._url = f"http://{LOCAL}:{port}"
        self._port = port
        self._stack = ExitStack()
        self._said: int | None = None
        self._refused: int | None = None
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "_Service":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def follow(self, champion: int | None) -> None:
        """See that there is a service if there is a champion, and none if there is none, and say which version is served."""
        if self._process is not None and self._process.poll() is not None:
            say(f"the service has ended: see the end of {_log('service')}")
            self._end()
        if champion is None and self._process is not None:
            self._end()
            say("Service  ended, there is no champion any more")
        if champion is not None and self._process is None and champion != self._refused:
            self._start(champion)
        if self._process is not None and (served := self._served()) not in (None, self._said):
            say(f"Service  {self._url}  (version {served})")
            self._said = served

    def _end(self) -> None:
        self._stack.close()
        self._process = self._said = self._refused = None

    def _start(self, champion: int) -> None:
        command = [sys.executable, "-m", "bentoml", "serve", "--host", LOCAL, "--port", str(self._port)]
        self._process = self._stack.enter_context(supervised(command, _log("service"), grace=DRAIN_SECONDS + SERVER_GRACE))
        try:
            wait_for(f"{self._url}/readyz", self._process, "the service", _log("service"))
        except ProsemillError as error:
            say(f"version {champion}, the champion, is not served: {error}; start `prosemill up` again, or promote another")
            self._end()
            self._refused = champion

    def _served(self) -> int | None:
        """The version that the service serves; None if it does not say."""
        import requests

        try:
            key = _key(os.environ)
            answer = requests.get(f"{self._url}/v1/models", headers={"Authorization": f"Bearer {key}"} if key else {}, timeout=2)
            return int(answer.json()["data"][0]["version"])
        except (requests.RequestException, OSError, ValueError, KeyError):
            return None


def _key(environment: Mapping[str, str]) -> str | None:
    """One of the service's keys; None if it asks for none. Raises `OSError` if their file cannot be read."""
    file = environment.get("PROSEMILL_API_KEYS_FILE")
    lines = environment.get("PROSEMILL_API_KEYS", "").split(",") + (Path(file).read_text(encoding="utf-8").splitlines() if file else [])
    return next((line.strip() for line in lines if line.strip()), None)


def mlflow_command(port: int) -> list[str]:
    """The command of MLflow's page on this machine alone, in `mlflow_environment`. One worker process suffices for a page."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", LOCAL, "--port", str(port), "--workers", "1"]
    return [*command, "--app-name", "basic-auth"]


def mlflow_environment(port: int) -> dict[str, str]:
    """What MLflow's page gets by the environment, and its users' settings in a file.

    The store, whose password a command line would show to everybody on this machine; the hosts, without which it answers to names that a
    foreign page can point at this machine; and the one who may use it.
    """
    from prosemill.tracking.server import tracking_uri

    user, _, password = user_and_password().partition(":")
    users, settings = (TRACKING.absolute() / name for name in (f"users-{port}.db", f"auth-{port}.ini"))
    users.unlink(missing_ok=True)  # of another password, or cut by a kill, which MLflow cannot complete
    write_durably(settings, MLFLOW_AUTH.format(users=str(users).replace("%", "%%")))
    return {
        "MLFLOW_BACKEND_STORE_URI": tracking_uri(),
        # Its evaluation jobs would be seven more processes, and nothing here submits one.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": os.environ.get("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false"),
        "MLFLOW_SERVER_ALLOWED_HOSTS": os.environ.get("MLFLOW_SERVER_ALLOWED_HOSTS", f"{LOCAL}:{port},localhost:{port}"),
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_AUTH_ADMIN_USERNAME": user,
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_urlsafe(),
    }


def _deploy() -> None:
    """Tell the server of the deployments. Raises `ProsemillError` if prefect.yaml does not fit."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists

    from prosemill.orchestration.runs import close_lost_flow_runs

    with get_client(sync_client=True) as client:
        close_lost_flow_runs(client)
        with suppress(ObjectAlreadyExists):
            client.create_work_pool(WorkPoolCreate(name=WORK_POOL, type="process"))
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(DEPLOYMENTS)]
    finished = subprocess.run(
        command,
        env=os.environ | {"PWD": str(Path.cwd())},  # which prefect.yaml names, and which is a shell's, not this process's
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    _log("deploy").write_text(finished.stdout, encoding="utf-8")
    if finished.returncode != 0:
        raise ProsemillError(f"{DEPLOYMENTS} cannot be deployed: {_explain(finished.stdout)}; see {_log('deploy')}")


def _explain(output: str) -> str:
    """The last deployment that Prefect names, and what it says of it, without the frames that it draws."""
    lines = [line.strip("│╭╮╰╯─ ") for line in output.splitlines()]
    text = " ".join(line for line in lines if line and not line.startswith("For further information"))
    return text.rpartition("Deploying ")[2]


def refuse_wrong_ports(options: Mapping[str, int]) -> None:
    """Raise `ProsemillError` if a port is taken, is given twice or cannot be; `options` are named in its line."""
    for port in options.values():
        same = [option for option, other in options.items() if other == port]
        if len(same) > 1:
            raise ProsemillError(f"{' and '.join(same)} are both {port}: give each a port of its own")
    for option, port in options.items():
        try:
            with socket.create_server((LOCAL, port or -1)):  # with 0 the system would choose one
                pass
        except (OSError, OverflowError) as error:
            reason = os.strerror(error.errno or 0) if isinstance(error, OSError) else "ports are 1 to 65535"
            raise ProsemillError(f"port {port} cannot be had ({reason}): free it, or choose another with {option}") from None


def _log(name: str) -> Path:
    return LOGS / f"{name}.log"
