"""`python -m flows`: the pipeline as a flow, on the server that `prosemill up` runs, or on one of its own until it ends."""

from typing import Annotated, Literal

import typer

from prosemill.errors import ProsemillError, first_line, run_main
from prosemill.orchestration.environment import is_shared, prefect_server

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

Busy = Literal["wait", "refuse"]


@app.command()
def run(
    overrides: Annotated[
        list[str] | None, typer.Option("-S", "--set-param", help="An experiment, as `dvc exp run -S` takes it; may be repeated.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Run every stage, though nothing has changed.")] = False,
    promote: Annotated[
        bool, typer.Option("--promote", help="Ask for the version's promotion if it passes the gate and nobody has refused it.")
    ] = False,
    package: Annotated[
        bool, typer.Option("--package", help="Build a Bento of the version if it passes the gate or is the champion.")
    ] = False,
    if_busy: Annotated[Busy, typer.Option(help="While another run works here: `wait` or `refuse`.")] = "wait",
) -> None:
    """Run the pipeline, from raw text to a registered model: what has changed is run, the rest is left as it is."""
    run_main(lambda: _run(overrides, force, promote, package, if_busy))


def _run(overrides: list[str] | None, force: bool, promote: bool, package: bool, if_busy: Busy) -> None:
    if promote and not is_shared():
        raise ProsemillError("--promote asks the flow `promotion`, which needs a server that stays: start `prosemill up` first")
    with prefect_server():
        from httpx import HTTPError
        from prefect.client.orchestration import get_client
        from prefect.exceptions import PrefectException

        from flows.pipeline import pipeline
        from prosemill.orchestration.runs import CancelledInPage, say_cancelled

        server = get_client(sync_client=True)
        address = server.api_url
        try:
            with server:
                server.read_flows(limit=1)
        except (HTTPError, PrefectException) as error:
            advice = "start it, or see PREFECT_API_URL and PREFECT_API_AUTH_STRING"
            raise ProsemillError(f"the Prefect server at {address} cannot be used ({first_line(error)}): {advice}") from None
        try:
            state = pipeline(overrides, force, promote, package, if_busy, return_state=True)
        except CancelledInPage as cancelled:
            with get_client(sync_client=True) as client:
                say_cancelled(client, *cancelled.args)
            raise ProsemillError("cancelled in the Prefect page; run the same command again to go on") from None
        except (HTTPError, PrefectException) as error:
            lost = "what the stages have made is kept; run the same command again to go on"
            raise ProsemillError(f"the Prefect server at {address} went away ({first_line(error)}): {lost}") from None
        if not state.is_completed():
            # The last lines of a stage that failed have been printed as they came.
            raise ProsemillError((state.message or state.name or "").partition("\n")[0])


if __name__ == "__main__":
    app()
