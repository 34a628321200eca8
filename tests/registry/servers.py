"""Tracking servers for the tests: an SQLite file, and MLflow over HTTP with PostgreSQL behind it."""

import getpass
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.ports import free_port
from tests.waiting import LIMIT


def postgresql_programs() -> Path | None:
    """The folder of PostgreSQL's server programs, which Debian keeps off the PATH; None where they are not installed."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((folder for folder in reversed(folders) if (folder / "initdb").is_file()), None)


@contextmanager
def postgresql() -> Iterator[str]:
    """A database server on a socket; its SQLAlchemy address. Root, who may not run it, lets the user postgres do so.

    It does not lie in pytest's own folder, to which another run of pytest, when it begins, denies access for all other users.
    """
    programs = postgresql_programs()
    assert programs is not None
    user = "postgres" if os.geteuid() == 0 else getpass.getuser()
    with tempfile.TemporaryDirectory(prefix="prosemill-postgresql-") as folder, _running(programs, Path(folder), user):
        yield f"postgresql+psycopg2://prosemill@/postgres?host={folder}"


@contextmanager
def _running(programs: Path, folder: Path, user: str) -> Iterator[None]:
    shutil.chown(folder, user)
    for parent in folder.parents:  # the other user must reach it
        if os.geteuid() == 0 and parent.stat().st_uid == 0 and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o011)
    data = folder / "data"
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder, "user": user}
    subprocess.run([programs / "initdb", "--auth=trust", "--username=prosemill", "--no-sync", data], check=True, **quiet)
    options = f"-c listen_addresses='' -c unix_socket_directories='{folder}' -c fsync=off"
    control: list[str | Path] = [programs / "pg_ctl", "--pgdata", data, "--wait"]
    subprocess.run([*control, "--options", options, "--log", folder / "log", "start"], check=True, **quiet)
    try:
        yield
    finally:
        subprocess.run([*control, "--mode=immediate", "stop"], check=True, **quiet)


@contextmanager
def mlflow_server(folder: Path, store: str) -> Iterator[str]:
    """A tracking server on this machine that keeps its tables in `store` and its artifacts in `folder`; its address."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", store, "--artifacts-destination", str(folder / "artifacts")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_TRACKING")}
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_until_it_answers(address, server, folder / "server.log")
        yield address
    finally:
        os.killpg(server.pid, 15)
        server.wait()


def _wait_until_it_answers(address: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + LIMIT
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=1):  # noqa: S310 - http, on this machine
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"the tracking server did not start:\n{log.read_text()}")
