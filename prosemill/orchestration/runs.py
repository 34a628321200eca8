"""One run of the pipeline at a time in a workspace, and an end for runs that a crash left open.

    with at_work("wait") as lock:
        ...

A run is known by the lock that its process holds: `.prosemill/runs/<server>/<flow run>.lock` for Prefect, `.checkpoints/<fingerprint>.lock`
for MLflow. Whoever died holds none, so the next run can say on the servers what the dead one could not.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from uuid import UUID

from prosemill.digests import sha256_of_value
from prosemill.locks import BusyError, alone
from prosemill.orchestration.environment import HOME
from prosemill.workspace import CHECKPOINTS, STATE, TRACKING

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

PIPELINE_LOCK = STATE / "pipeline.lock"
RUNS = STATE / "runs"
INTERVAL = 2.0  # seconds between two questions whether the page wants the run to end
_MARKS = ExitStack()
ENDED = "its process ended without a word: a crash, a kill or a machine that was switched off; run it again, and it goes on where it was"


class CancelledInPage(BaseException):  # no error: as KeyboardInterrupt, it must reach the top
    """Somebody cancelled the run in the Prefect page. Its argument is the flow run's id."""


@contextmanager
def at_work(if_busy: Literal["wait", "refuse"], on_wait: Callable[[str], None], tick: Callable[[], None]) -> Iterator[int]:
    """Be the one run of the pipeline in this workspace while the block runs.

    Args:
        if_busy: What to do while another run is at work.
        on_wait: Told once who that is, if it is waited for.
        tick: Called about once a second while waiting; what it raises ends the wait.

    Yields:
        The lock's file descriptor, for processes that must be gone before another run may begin.

    Raises:
        BusyError: another run is at work, and it shall not be waited for.
    """
    is_told = False
    while True:
        with ExitStack() as stack:
            try:
                file = stack.enter_context(alone(PIPELINE_LOCK, "run of the pipeline"))
            except BusyError as error:
                if if_busy == "refuse":
                    raise
                if not is_told:
                    on_wait(f"waiting: {error}")
                is_told = True
            else:
                yield file.fileno()
                return
        tick()
        time.sleep(1)


def mark(flow_run: UUID) -> None:
    """Let other processes see, until this one is gone, that the process of a flow run lives.

    Not only until the run's code has ended: Prefect tells its server after that how it went.
    """
    _MARKS.enter_context(alone(marks() / f"{flow_run}.lock", "process of this flow run"))


def marks() -> Path:
    """Where the marks of runs lie that the present Prefect server knows; those of another wait until that one is used again."""
    own = os.environ.get("PREFECT_HOME") == str(HOME.absolute())  # whose port changes, and whose store is the same
    name = os.environ.get("PREFECT_API_URL") or os.environ.get("PREFECT_PROFILE")
    return RUNS / ("own" if own else sha256_of_value(name)[:16])


def close_lost_flow_runs(client: "SyncPrefectClient") -> list[str]:
    """Give flow runs of this workspace whose process is gone their last state; their names."""
    from prefect.exceptions import ObjectNotFound

    names = []
    for path in sorted(marks().glob("*.lock")):
        with suppress(BusyError), alone(path, "process of this flow run"):
            with suppress(ObjectNotFound):
                names += _close(client, UUID(path.stem))
            path.unlink(missing_ok=True)  # last: what the server did not take is left to the next run
    return names


def close_lost_tracked_runs() -> list[str]:
    """End runs of MLflow that say RUNNING while nobody trains them in this workspace; their names. Going on later opens them again.

    In a store that the user has named, those alone that were trained here: the others may be another workspace's.

    Raises:
        ProsemillError: the tracking server does not answer.
    """
    from prosemill.tracking.run import FINGERPRINT_TAG
    from prosemill.tracking.server import SQLITE, connect, experiment_id, needing_answers, tracking_uri

    client = connect().MlflowClient()
    is_shared = tracking_uri() != f"{SQLITE}{(TRACKING / 'mlflow.db').absolute()}"
    names = []
    with needing_answers():
        for run in client.search_runs([experiment_id()], "attributes.status = 'RUNNING'"):
            fingerprint = run.data.tags.get(FINGERPRINT_TAG)
            lock = CHECKPOINTS / f"{fingerprint}.lock"
            if fingerprint is None or (is_shared and not lock.is_file()):
                continue
            with suppress(BusyError), alone(lock, "training"):
                client.set_terminated(run.info.run_id, "KILLED")
                names.append(str(run.info.run_name))
    return names


def say_cancelled(client: "SyncPrefectClient", flow_run: UUID) -> None:
    """Give a flow run that was cancelled in the page its last state; Prefect would call it crashed."""
    from prefect.exceptions import ObjectNotFound
    from prefect.states import Cancelled

    with suppress(ObjectNotFound):  # it was deleted
        client.set_flow_run_state(flow_run, Cancelled(), force=True)


class Cancellation:
    """Looks from time to time, when called, whether the flow run was cancelled in the page."""

    def __init__(self, flow_run: UUID) -> None:
        from prefect.client.orchestration import get_client

        from prosemill.orchestration.page import at_once

        self._flow_run, self._next = flow_run, 0.0
        with at_once():
            self._client = get_client(sync_client=True)  # of its own: a client stays as patient as it was made

    def __call__(self) -> None:
        """Raise `CancelledInPage` if it was. A server that does not answer cancels nothing."""
        from httpx import HTTPError
        from prefect.exceptions import ObjectNotFound

        from prosemill.orchestration.page import at_once

        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + INTERVAL
        with suppress(HTTPError), at_once():
            try:
                state = self._client.read_flow_run(self._flow_run).state
            except ObjectNotFound:  # deleted while it works
                raise CancelledInPage(self._flow_run) from None
            if state is not None and (state.is_cancelling() or state.is_cancelled()):
                raise CancelledInPage(self._flow_run)


def _close(client: "SyncPrefectClient", flow_run: UUID) -> list[str]:
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
    from prefect.states import Cancelled, Crashed

    run = client.read_flow_run(flow_run)
    if run.state is None or run.state.is_final():
        return []
    for task_run in client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run]))):
        if task_run.state is None or not task_run.state.is_final():
            client.set_task_run_state(task_run.id, Crashed(message=ENDED), force=True)
    client.set_flow_run_state(flow_run, Cancelled() if run.state.is_cancelling() else Crashed(message=ENDED), force=True)
    return [run.name]
