"""The pipeline as a Prefect flow: a task for each stage of DVC, then the registration, the gate, and the call for a promotion.

python -m flows                              # what `make run` does
python -m flows -S model=tiny --promote
python -m flows --package                    # and a Bento of the version, if it passes the gate

On the server that `prosemill up` starts, the page has it as the deployments of prefect.yaml.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple
from uuid import UUID

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, TaskRun
from prefect.events import emit_event
from prefect.logging import get_run_logger
from prefect.runtime import deployment, flow_run
from prefect.states import Completed, Failed
from prefect.tasks import exponential_backoff
from pydantic import BaseModel, ConfigDict, Field

from flows.promotion import build_bento, is_refused
from prosemill.errors import ProsemillError
from prosemill.orchestration.environment import mlflow_page
from prosemill.orchestration.experiment import experiment, restore_params, run_name, save_experiment, uncommitted_changes
from prosemill.orchestration.page import Page, StageRow, quiet_mistakes
from prosemill.orchestration.runs import Cancellation, at_work, close_lost_flow_runs, close_lost_tracked_runs, mark
from prosemill.orchestration.stages import (
    CommandFailedError,
    interruptible,
    leading_unchanged_stages,
    reproduce,
    run_command,
    stage_names,
)
from prosemill.params import Gate, read_section
from prosemill.registry import registering
from prosemill.registry.gate import IncomparableError
from prosemill.registry.promotion import examine
from prosemill.registry.store import Registry, Version
from prosemill.workspace import PARAMS

NUM_RETRIES = 3
PROMOTION_REQUESTED = "prosemill.promotion.requested"
"""The event that starts the flow `promotion`."""

Tick = Callable[[], None]


class Hours(BaseModel):
    """The most that each try of a step may take, in hours; what takes longer is stopped and fails."""

    model_config = ConfigDict(extra="forbid")

    download: float = Field(default=12, gt=0)
    tokenize: float = Field(default=12, gt=0)
    group: float = Field(default=12, gt=0)
    train: float = Field(default=72, gt=0)
    evaluate: float = Field(default=12, gt=0)
    registration: float = Field(default=1, gt=0)
    gate: float = Field(default=12, gt=0)
    package: float = Field(default=1, gt=0)


@flow(name="pipeline", description="From raw text to a registered model: what has changed is run, the rest is left as it is.")
def pipeline(
    overrides: list[str] | None = None,
    force: bool = False,
    promote: bool = False,
    package: bool = False,
    if_busy: Literal["wait", "refuse"] = "wait",
    hours: Hours | None = None,
) -> State[int]:
    """Run the pipeline from the source of the text to a registered model, and hold that against the gate.

    Args:
        overrides: An experiment, as `dvc exp run -S` takes it, as `model=tiny` or `train.max_steps=200`; none for params.yaml as it is.
        force: Run every stage, though nothing has changed.
        promote: Ask for the version's promotion if it passes the gate and nobody has refused it: the flow `promotion` takes over then.
        package: Build a Bento of the version if it passes the gate or is the champion, as `prosemill package` does: some hundred megabytes.
        if_busy: What to do while another run works in this workspace.
        hours: The most that each step may take.

    Returns:
        The number of the registered version.
    """
    quiet_mistakes()
    try:
        return _run(overrides or [], force, promote, package, if_busy, hours or Hours())
    except ProsemillError as error:
        return Failed(message=str(error), data=error)


def _run(overrides: list[str], force: bool, promote: bool, package: bool, if_busy: Literal["wait", "refuse"], hours: Hours) -> State[int]:
    logger, run_id = get_run_logger(), UUID(flow_run.id)
    mark(run_id)
    with get_client(sync_client=True) as client:
        tick = Cancellation(run_id) if deployment.id is None else _nothing  # else the worker stops the run
        with reporting() as page, at_work(if_busy, logger.info, tick) as lock:
            for name in (*close_lost_flow_runs(client), *close_lost_tracked_runs()):
                logger.warning(f"{name} was left open by a crash; it is closed now")
            restore_params()  # an experiment that was killed is no change of the user's
            changes = [path for path in uncommitted_changes() if not overrides or path != PARAMS.as_posix()]
            with experiment(overrides):
                client.update_flow_run(run_id, name=run_name(overrides, has_changes=bool(changes)))
                if changes:
                    logger.warning(f"uncommitted changes go into this run: {', '.join(changes)}")
                run_stages(page, force, hours, lock, tick)
                if overrides:
                    logger.info(f"kept as an experiment: dvc exp apply {save_experiment(overrides)}")
                version = register(page, hours.registration, lock, tick)
            # By the workspace's own rules: an experiment does not choose what it is measured by.
            outcome = gate(page, version, hours.gate, tick)
            message = f"version {version.number} {outcome.text}"
            if promote and outcome.passed:
                message += f"; {ask_for_promotion(version)}"
            if package and (outcome.passed or outcome.is_champion):  # last: one that fails costs no promotion
                try:
                    build_bento(page, version.number, hours.package, tick, [lock])
                except CommandFailedError as error:
                    return Failed(message=f"{message}, without a Bento: {error.summary}", data=error)
    return Completed(message=message, data=version.number)


@contextmanager
def reporting() -> Iterator[Page]:
    """The run's page; however the block ends, the log says what the page did not get."""
    page = Page()
    try:
        yield page
    finally:
        if page.unreported:
            get_run_logger().warning(f"the Prefect server did not take {', '.join(page.unreported)}: see reports/ and metrics/")


def run_stages(page: Page, force: bool, hours: Hours, lock: int, tick: Tick) -> None:
    """One task after the other, and a table of what each did, also if one fails."""
    rows = []
    unchanged = [] if force else leading_unchanged_stages(tick=tick, hold=[lock])
    try:
        for name in stage_names():
            begin, result = time.monotonic(), "failed"
            try:
                run = stage.with_options(name=name, task_run_name=name)
                state = run(name, page, name in unchanged, force, getattr(hours, name), lock, tick)
                result = state.result()
            finally:
                rows.append(StageRow(name, result, time.monotonic() - begin))
        page.show_evaluation()
    finally:
        page.show_stages(rows)


def is_worth_another_try(_task: Any, _run: TaskRun, state: State[Any]) -> bool:
    """No network may be one in a while, and a stage that was killed goes on where it was; whatever else failed would fail again."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, CommandFailedError) and (error.is_temporary or error.was_killed)


@task(retries=NUM_RETRIES, retry_delay_seconds=exponential_backoff(10), retry_condition_fn=is_worth_another_try, cache_policy=NO_CACHE)
def stage(name: str, page: Page, is_unchanged: bool, force: bool, hours: float, lock: int, tick: Tick) -> State[str]:
    """Run a stage of DVC; the state is called by what came of it: Completed, Cached or Unchanged."""
    logger, bars = get_run_logger(), page.progress()
    if is_unchanged:
        logger.info(f"Stage '{name}' didn't change, skipping")
        return Completed(name="Unchanged", message=f"{name}: unchanged", data="unchanged")

    def show(line: str) -> None:
        logger.info(line)
        bars(line)

    result = reproduce(name, show, force=force, seconds=3600 * hours, tick=tick, hold=[lock])
    return Completed(name={"ran": "Completed"}.get(result, result.capitalize()), message=f"{name}: {result}", data=result)


@task(cache_policy=NO_CACHE, task_run_name="register")
def register(page: Page, hours: float, lock: int, tick: Tick) -> Version:
    """Register the trained model; its version. A package is built in a process of its own, which can be stopped."""
    registry = Registry.open()
    version = registering.find_registered(registry)
    if version is None:
        run_command("register", ["prosemill", "register"], get_run_logger().info, seconds=3600 * hours, tick=tick, hold=[lock])
        version = registering.find_registered(registry)
        assert version is not None, "it was registered just now"
    else:
        with interruptible("register", seconds=3600 * hours, tick=tick):
            version = registering.register()  # which only brings its lineage up to date
    page.show_version(version, mlflow_page())
    return version


class Outcome(NamedTuple):
    """What the gate came to."""

    passed: bool
    text: str
    """Goes on after the version's number."""
    is_champion: bool = False
    """Whether the version is what it might have become."""


@task(cache_policy=NO_CACHE, task_run_name="gate")
def gate(page: Page, version: Version, hours: float, tick: Tick) -> Outcome:
    """Hold the version against the gate, which may evaluate the champion again; one that does not compare is registered all the same."""
    registry = Registry.open()
    if registry.served().champion == version.number:
        return Outcome(False, "is the champion already", is_champion=True)
    try:
        with interruptible("gate", seconds=3600 * hours, tick=tick):
            verdict = examine(registry, read_section("gate", Gate), version.number, wait=True)
    except IncomparableError as error:
        get_run_logger().warning(str(error))
        return Outcome(False, f"is registered, and the gate cannot judge it: {error}")
    page.show_verdict(verdict)
    found = "passes the gate" if verdict.passed else f"does not pass the gate: {verdict.failed}"
    return Outcome(verdict.passed, f"is registered and {found}")


def ask_for_promotion(version: Version) -> str:
    """Start the flow `promotion`, unless a person has refused the version; what came of it, for the run's message."""
    if is_refused(version):
        return "a person has refused it, and is asked again by the flow `promotion` alone"
    resource = {"prefect.resource.id": f"prosemill.version.{version.number}"}
    emit_event(PROMOTION_REQUESTED, resource, payload={"version": version.number})
    return "its promotion is asked for"


def _nothing() -> None: ...
