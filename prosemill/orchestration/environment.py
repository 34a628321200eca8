"""How Prefect is set up here: a server of this workspace's own, which nobody else on the machine and no web page can use.

    with prefect_server():
        from flows.pipeline import pipeline
        pipeline()

A server that the user has named (`PREFECT_API_URL` or `PREFECT_PROFILE`) is used as it is. Otherwise it is the one that `prosemill up` has
started, or one that runs for as long as the block does. Either remembers in `.prosemill/prefect`, listens on the loopback interface alone,
and asks for a password (kept in a file that its owner alone can read), for CSRF tokens, and of browsers for its own page as their origin.
MLflow's page takes the same password.
"""

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prosemill.console import say
from prosemill.errors import ProsemillError
from prosemill.locks import BusyError, alone
from prosemill.supervised import supervised
from prosemill.workspace import STATE

HOME = STATE / "prefect"
AUTH = STATE / "auth"
"""User and password of the workspace's own servers."""
HOUSE = STATE / "house.json"
"""Addresses of the servers that `prosemill up` runs."""
HOUSE_LOCK = STATE / "house.lock"
LOGS = STATE / "logs"
LOCAL = "127.0.0.1"
PREFECT_PORT, MLFLOW_PORT, SERVICE_PORT = 4200, 5000, 3000
"""Where the servers listen unless told otherwise."""
STARTUP_SECONDS = 120
HAND_IN_SECONDS = 10
AT_THE_TERMINAL = {
    # What a person reads: no names of loggers, and of a server that went away one line at the end, not one for every lost event.
    "PREFECT_LOGGING_FORMATTERS_STANDARD_FLOW_RUN_FMT": "%(asctime)s | %(levelname)-7s | %(flow_run_name)s | %(message)s",
    "PREFECT_LOGGING_FORMATTERS_STANDARD_TASK_RUN_FMT": "%(asctime)s | %(levelname)-7s | %(task_run_name)s | %(message)s",
    "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_LOGGERS_PREFECT_EVENTS_LEVEL": "ERROR",
    # A lost call is tried again for a quarter of a minute, not for two.
    "PREFECT_CLIENT_MAX_RETRIES": "3",
}
"""How a flow that is run by hand deals with its server; what the user has set counts more."""


@contextmanager
def prefect_server() -> Iterator[None]:
    """Have this process's environment name a Prefect server that answers. To be entered before `prefect` is imported.

    Raises:
        ProsemillError: none is there, and none starts.
    """
    assert "prefect" not in sys.modules, "it has read its settings"
    for name, value in AT_THE_TERMINAL.items():
        os.environ.setdefault(name, value)
    if _is_named():
        yield
    elif (house := read_house()) is not None:
        os.environ.update(prefect_environment(house["prefect"]))
        yield
    else:
        address = f"http://{LOCAL}:{free_port()}"
        os.environ.update(prefect_environment(address))
        log = LOGS / "prefect-server.log"
        with supervised(server_command(address), log) as process:
            wait_for(f"{address}/api/health", process, "the Prefect server", log)
            say(f"page of this run: {address}, password in {AUTH}")
            try:
                yield
            finally:
                _hand_in_reports()


def is_shared() -> bool:
    """Whether the server is one that was there before, and stays: the user's or the house's."""
    return _is_named() or read_house() is not None


def _is_named() -> bool:
    return bool(os.environ.get("PREFECT_API_URL") or os.environ.get("PREFECT_PROFILE"))


def _hand_in_reports() -> None:
    """Have the server get the logs and states that still wait: Prefect sends them at the end of the process, when it would be gone."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogHandler

    EventsWorker.drain_all(timeout=HAND_IN_SECONDS, at_exit=False)
    APILogHandler().flush()


def prefect_environment(address: str) -> dict[str, str]:
    """Environment variables for a server of this workspace at an address, and for its clients."""
    auth = user_and_password()
    return {
        "PREFECT_HOME": str(HOME.absolute()),
        "PREFECT_API_URL": f"{address}/api",
        "PREFECT_API_AUTH_STRING": auth,
        "PREFECT_SERVER_API_AUTH_STRING": auth,
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED": "true",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": address,
        "PREFECT_SERVER_UI_API_URL": f"{address}/api",
        # A proxy is for others: it would be asked for this machine's own addresses, and told the password.
        **{name: ",".join(filter(None, [os.environ.get(name), LOCAL, "localhost"])) for name in ("NO_PROXY", "no_proxy")},
    }


def server_command(address: str) -> list[str]:
    """The command of a Prefect server."""
    return [sys.executable, "-m", "prefect", "server", "start", "--host", LOCAL, "--port", address.rpartition(":")[2]]


def read_house() -> dict[str, str] | None:
    """Addresses of the servers that `prosemill up` runs here: `prefect`, `mlflow`; None if it does not run."""
    try:
        addresses: dict[str, str] = json.loads(HOUSE.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None  # before the lock is tried: a house that is just starting must not find it taken
    try:
        with alone(HOUSE_LOCK, "house"):
            return None  # the file is left of one that was killed
    except BusyError:
        return addresses


def mlflow_page() -> str:
    """The address of MLflow's page: the tracking server's own, or else where `prosemill up` or `prosemill ui` shows it."""
    if (named := named_mlflow_server()) is not None:
        return named
    house = read_house()
    return house["mlflow"] if house else f"http://{LOCAL}:{MLFLOW_PORT}"


def named_mlflow_server() -> str | None:
    """The tracking server that the user has named by an address of the web: it has a page of its own."""
    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    return given.rstrip("/") if given.startswith("http") else None


def wait_for(url: str, process: "subprocess.Popen[str]", what: str, log: Path) -> None:
    """Wait until a server that was started answers. Raises `ProsemillError` if it ends or takes too long."""
    import requests

    end = time.monotonic() + STARTUP_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise ProsemillError(f"{what} ended while it started: see the end of {log}")
        with suppress(requests.RequestException):
            if requests.get(url, timeout=5).ok:
                return
        time.sleep(0.1)
    raise ProsemillError(f"{what} does not answer at {url} after {STARTUP_SECONDS} s: see the end of {log}")


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.create_server((LOCAL, 0)) as server:
        port: int = server.getsockname()[1]
    return port


def user_and_password() -> str:
    """User and password of the workspace's own servers, made on first use; readable by the file's owner alone.

    Raises:
        ProsemillError: their file cannot be made, or is broken.
    """
    try:
        STATE.mkdir(parents=True, exist_ok=True)
        if not AUTH.exists() and _make_auth():
            say(f"made a password for Prefect's server and MLflow's page: {AUTH}")
    except OSError as error:
        raise ProsemillError(f"{AUTH} cannot be made ({error.strerror}): make its folder writable") from None
    try:
        found = AUTH.read_text(encoding="ascii").strip()
    except OSError as error:
        raise ProsemillError(f"{AUTH} cannot be read ({error.strerror}): make it yours, or delete it") from None
    except UnicodeDecodeError:
        found = ""
    if found.count(":") != 1 or found.endswith(":"):
        raise ProsemillError(f"{AUTH} is broken: delete it, and a new password is made")
    return found


def _make_auth() -> bool:
    """Whether the file came to be, whole from the first moment; another process may have been faster."""
    descriptor, part = tempfile.mkstemp(prefix=f"{AUTH.name}.", dir=AUTH.parent)  # which its owner alone can read
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(f"prosemill:{secrets.token_urlsafe(24)}")
        os.link(part, AUTH)
    except FileExistsError:
        return False
    finally:
        Path(part).unlink()
    return True
