"""A promotion as a Prefect flow: the gate, then a person who sees its table and accepts or refuses, then the change of the champion.

    from flows.promotion import promotion
    promotion(3)

The pipeline's event starts it for a version that passed the gate, or a person in the page, as the deployment `promotion`. Nobody's answer
in time is a refusal.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Literal
from uuid import UUID

from prefect import flow, pause_flow_run, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, StateType
from prefect.exceptions import FlowPauseTimeout
from prefect.input import RunInput
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed, Failed, Running
from pydantic import Field, ValidationError

from prosemill.errors import ProsemillError
from prosemill.orchestration.experiment import own_params
from prosemill.orchestration.page import Page, quiet_mistakes
from prosemill.orchestration.runs import close_lost_flow_runs, mark
from prosemill.orchestration.stages import CommandFailedError, run_command
from prosemill.params import Gate, read_section
from prosemill.registry.gate import Verdict
from prosemill.registry.promotion import examine, promote
from prosemill.registry.store import DECISION, Registry, Version

POLL_SECONDS = 2

Hours = Annotated[float, Field(gt=0)]


class Decision(RunInput):
    """What a person says to a promotion."""

    accept: bool = Field(default=False, description="Make this version the champion.")
    comment: str = Field(default="", description="Why, for those who come later; it is kept with the version.")


@flow(name="promotion", description="The gate, a person's yes or no, and the change of the champion.")
def promotion(
    version: int | None = None, approval: Literal["person", "none"] = "person", hours: Hours = 24, package: bool = False
) -> State[bool]:
    """Promote a version that passes the gate.

    Args:
        version: Its number; none for the challenger.
        approval: Who must agree besides the gate.
        hours: How long a person may take; silence refuses.
        package: Build a Bento of the new champion, as `prosemill package` does: some hundred megabytes.

    Returns:
        Whether it was promoted.
    """
    quiet_mistakes()
    try:
        return _run(version, approval, hours, package)
    except ProsemillError as error:
        return Failed(message=str(error), data=error)


def _run(version: int | None, approval: Literal["person", "none"], hours: float, package: bool) -> State[bool]:
    registry, run_id = Registry.open(), UUID(flow_run.id)
    mark(run_id)
    with get_client(sync_client=True) as client:
        close_lost_flow_runs(client)
        verdict = examine(registry, read_section("gate", Gate, own_params()), version, wait=True)
        client.update_flow_run(run_id, name=f"version {verdict.version}")
    page = Page()
    page.show_verdict(verdict)
    if not verdict.passed:
        return _refused(f"version {verdict.version} does not pass the gate: {verdict.failed}")
    if approval == "person":
        decision = _ask(verdict, hours)
        if decision is None:
            return _refused(f"version {verdict.version} is refused: nobody answered within {hours:g} hours")
        registry.set_tags(verdict.version, {DECISION: decision.model_dump_json(exclude={"description"})})
        if not decision.accept:
            return _refused(f"version {verdict.version} is refused: {decision.comment or 'no comment'}")
    verdict = promote(registry, read_section("gate", Gate, own_params()), verdict.version, wait=True)
    if not verdict.passed:  # somebody changed the champion or the gate while the person thought
        return _refused(f"version {verdict.version} does not pass the gate any more: {verdict.failed}")
    message = f"version {verdict.version} is the champion"
    if package:
        try:
            build_bento(page, verdict.version)
        except CommandFailedError as error:  # which changes no champion back
            message += f", without a Bento: {error.summary}"
            get_run_logger().warning(message)
    return Completed(name="Promoted", message=message, data=True)


@task(name="package", task_run_name="package", cache_policy=NO_CACHE)
def build_bento(page: Page, number: int, hours: float = 1, tick: Callable[[], None] | None = None, hold: Sequence[int] = ()) -> None:
    """Build a version's Bento, in a process of its own, which can be stopped; the page shows where it lies."""
    lines = list[str]()

    def show(line: str) -> None:
        get_run_logger().info(line)
        lines.append(line)

    run_command("package", ["prosemill", "package", str(number)], show, seconds=3600 * hours, tick=tick, hold=hold)
    page.show_bento(number, lines)


def is_refused(version: Version) -> bool:
    """Whether a person has refused a version; silence is not kept with it."""
    try:
        return not Decision.model_validate_json(version.tag(DECISION)).accept
    except ValidationError:
        return False


def _ask(verdict: Verdict, hours: float) -> Decision | None:
    """A person's decision; None if there is none in time."""
    description = f"{verdict.as_markdown()}\n\nAnswer within {hours:g} hours; silence refuses."
    get_run_logger().info("a person decides: `Resume` in the menu of this run's page shows the gate's table and asks")
    question = Decision.with_initial_data(description=description, accept=False, comment="")
    try:
        answer: Decision = pause_flow_run(wait_for_input=question, timeout=round(3600 * hours), poll_interval=POLL_SECONDS)
    except FlowPauseTimeout:
        with get_client(sync_client=True) as client:  # a run that is still paused could only fail, and this is an answer
            client.set_flow_run_state(UUID(flow_run.id), Running(), force=True)
        return None
    return answer


def _refused(why: str) -> State[bool]:
    get_run_logger().warning(why)
    return State(type=StateType.COMPLETED, name="Refused", message=why, data=False)
