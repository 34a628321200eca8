"""The command line for people: `prosemill report`, `compare`, `params` and `ui`. The pipeline itself is run by `dvc repro`."""

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.command()
def report() -> None:
    """Show the last evaluation: the base and the trained model side by side."""
    from prosemill.errors import run_main

    run_main(_report)


@app.command()
def compare(write: Annotated[bool, typer.Option(help="Keep the table in reports/comparison.md and .json.")] = False) -> None:
    """Show the experiments side by side: sizes, bits per byte, perplexity, overlap, speed, and the command that makes each."""
    from prosemill.errors import run_main

    def show() -> None:
        from prosemill.comparison import print_comparison, read_experiments, write_comparison

        experiments = read_experiments()
        print_comparison(experiments)
        if write:
            write_comparison(experiments)

    run_main(show)


@app.command()
def params(section: Annotated[str | None, typer.Argument(help="One section; all of them if left out.")] = None) -> None:
    """Say what every key of params.yaml means, with its type and default."""
    from prosemill.errors import ProsemillError, run_main
    from prosemill.params import SECTIONS

    def show() -> None:
        from prosemill.params_help import print_help

        if section is not None and section not in SECTIONS:
            raise ProsemillError(f"params.yaml has no section {section!r}: choose from {', '.join(SECTIONS)}")
        print_help([section] if section else list(SECTIONS))

    run_main(show)


@app.command()
def ui(port: Annotated[int, typer.Option(help="Port on this machine.")] = 5000) -> None:
    """Open the page of tracked runs (MLflow) on this machine alone; Ctrl-C ends it."""
    import os
    import sys

    from prosemill.telemetry import switch_off
    from prosemill.tracking.server import connect, tracking_uri

    switch_off()
    connect()  # which makes the store, if this comes before the first run
    # Without a list of hosts MLflow answers to names that a foreign page can point at this machine.
    os.environ.setdefault("MLFLOW_SERVER_ALLOWED_HOSTS", f"127.0.0.1:{port},localhost:{port}")
    arguments = ["-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port), "--backend-store-uri", tracking_uri()]
    typer.echo(f"tracked runs: http://127.0.0.1:{port}  (Ctrl-C ends the page)")
    os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606 # no shell is involved


def _report() -> None:
    import json

    from prosemill.errors import ProsemillError
    from prosemill.evaluation import print_table
    from prosemill.workspace import METRICS

    path = METRICS / "evaluation.json"
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ProsemillError(f"{path} is missing: run `make run` or `dvc repro` first") from None
    except ValueError as error:
        raise ProsemillError(f"{path} is broken ({error}): run `dvc repro evaluate` to make it again") from None
    print_table(metrics)
