"""The MLflow server that everything is written to, and what to say when it does not answer.

    mlflow = connect()
    with needing_answers():
        mlflow.MlflowClient().get_run(run_id)

MLflow's default here is an SQLite file under the repository, by an absolute URI, so that every process and every folder it is started in
writes to the same place; `MLFLOW_TRACKING_URI` names any other server.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prosemill.errors import ProsemillError, first_line
from prosemill.locks import alone
from prosemill.workspace import TRACKING

EXPERIMENT = "prosemill"
SQLITE = "sqlite:///"
DRIVERS = ("psycopg2", "psycopg", "pymysql", "MySQLdb", "pyodbc")
"""Modules that SQLAlchemy needs for servers other than SQLite."""

SYSTEMS_WORDS = re.compile(r"\[Errno -?\d+\] ([\w ]+)")
NO_CONNECTION = "failed with exception"  # what MLflow says where its request met no server

SETTINGS = {
    # Without these a server that is down holds a run up for many minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
"""What MLflow reads from the environment when it is imported; what the user has set stays."""


class UnreachableError(Exception):
    """The server does not answer, or does not take what it is given."""


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, or else the SQLite file under the current repository; a file's path is absolute."""
    given = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{TRACKING / 'mlflow.db'}"
    return f"{SQLITE}{Path(given.removeprefix(SQLITE)).absolute()}" if given.startswith(SQLITE) else given


def connect() -> Any:
    """The module `mlflow`, set to `tracking_uri()`; the default store is made if it is not there."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import mlflow

    if not os.environ.get("MLFLOW_TRACKING_URI"):
        _make_store()
    mlflow.set_tracking_uri(tracking_uri())
    return mlflow


@contextmanager
def answering() -> Iterator[None]:
    """While MLflow is asked for something: its many errors become one.

    Raises:
        UnreachableError: with the server's address, the first line of what is wrong, and what to do.
    """
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError) as error:
        raise UnreachableError(explain(error)) from error
    except ModuleNotFoundError as error:
        if error.name not in DRIVERS:
            raise
        raise UnreachableError(f"{tracking_uri()} needs {error.name}: install it with pip") from error


def explain(error: Exception) -> str:
    """One line for what went wrong with the server."""
    from requests.exceptions import RequestException
    from sqlalchemy.exc import OperationalError

    is_down = isinstance(error, RequestException | OperationalError) or NO_CONNECTION in str(error)
    cause = SYSTEMS_WORDS.findall(str(error))  # at the end of a chain of exceptions, each of which names the whole request
    verb, remedy = (
        ("answer", f"start it, or unset MLFLOW_TRACKING_URI to use {TRACKING}") if is_down else ("do what it is asked", "see its log")
    )
    return f"the MLflow server at {tracking_uri()} does not {verb} ({cause[-1] if is_down and cause else first_line(error)}): {remedy}"


def experiment_id() -> str:
    """The id of the experiment that holds all runs; made if it is not there."""
    import mlflow

    experiment = mlflow.get_experiment_by_name(EXPERIMENT)
    return str(experiment.experiment_id if experiment else _create_experiment())


@contextmanager
def needing_answers() -> Iterator[None]:
    """`answering`, for what cannot go on without the server.

    Raises:
        ProsemillError: the server does not answer.
    """
    try:
        with answering():
            yield
    except UnreachableError as error:
        raise ProsemillError(str(error)) from None


def _create_experiment() -> str:
    """Artifacts of the default SQLite store lie beside it; a server decides for itself."""
    import mlflow

    location = (TRACKING / "artifacts").absolute().as_uri() if tracking_uri().startswith(SQLITE) else None
    return str(mlflow.create_experiment(EXPERIMENT, location, {"mlflow.experimentKind": "custom_model_development"}))


def _make_store() -> None:
    """Make the default store, whole or not at all: MLflow's own first start, cut by a kill, leaves tables that no later start completes."""
    store = TRACKING / "mlflow.db"
    with alone(TRACKING / "mlflow.lock", "making of the tracking store", wait=True):
        if store.is_file():
            return
        from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine

        part = store.with_name("mlflow.db.part")
        for stale in TRACKING.glob(f"{part.name}*"):
            stale.unlink()
        engine = create_sqlalchemy_engine(f"sqlite:///{part.absolute()}")
        _initialize_tables(engine)
        engine.dispose()
        part.replace(store)
