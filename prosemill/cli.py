"""The command line for people. The pipeline itself is run by `dvc repro`; what comes before and after it is here."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ParamSpec

import typer

from prosemill.errors import ProsemillError, run_main
from prosemill.orchestration.environment import MLFLOW_PORT, PREFECT_PORT, SERVICE_PORT
from prosemill.workspace import TRAINED_MODEL

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

P = ParamSpec("P")

VERSION = "Number of the version, or the id of an answer that the service gave."


def command(function: Callable[P, None]) -> Callable[P, None]:
    """Make a function a command whose user's mistakes end in one line. Each imports what it needs: `--help` must not wait for torch."""

    @app.command()
    @functools.wraps(function)
    def run(*arguments: P.args, **options: P.kwargs) -> None:
        run_main(lambda: function(*arguments, **options))

    return run


@command
def report() -> None:
    """Show the last evaluation: the base and the trained model side by side."""
    import json

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


@command
def compare(write: Annotated[bool, typer.Option(help="Keep the table in reports/comparison.md and .json.")] = False) -> None:
    """Show the experiments side by side: sizes, bits per byte, perplexity, overlap, speed, and the command that makes each."""
    from prosemill.comparison import print_comparison, read_experiments, write_comparison

    experiments = read_experiments()
    print_comparison(experiments)
    if write:
        write_comparison(experiments)


@command
def params(section: Annotated[str | None, typer.Argument(help="One section; all of them if left out.")] = None) -> None:
    """Say what every key of params.yaml means, with its type and default."""
    from prosemill.params import SECTIONS
    from prosemill.params_help import print_help

    if section is not None and section not in SECTIONS:
        raise ProsemillError(f"params.yaml has no section {section!r}: choose from {', '.join(SECTIONS)}")
    print_help([section] if section else list(SECTIONS))


@command
def register() -> None:
    """Register the trained and evaluated model as a version, the challenger. The same weights keep their version."""
    from prosemill.registry.registering import register
    from prosemill.registry.tables import print_versions

    print_versions([register()])


@command
def versions() -> None:
    """List the registered versions: which are served, what they score, and where they are from."""
    from prosemill.registry.store import Registry
    from prosemill.registry.tables import print_versions

    print_versions(Registry.open().versions())


@command
def promote(version: Annotated[int | None, typer.Argument(help="Number of the version; the challenger if left out.")] = None) -> None:
    """Make a version the champion, if it passes the gate: section `gate` of params.yaml."""
    from prosemill.orchestration.experiment import own_params
    from prosemill.params import Gate, read_section
    from prosemill.registry.promotion import promote
    from prosemill.registry.store import Registry
    from prosemill.registry.tables import print_verdict

    verdict = promote(Registry.open(), read_section("gate", Gate, own_params()), version)
    print_verdict(verdict)
    if not verdict.passed:
        raise ProsemillError(f"version {verdict.version} is not promoted: it fails by {verdict.failed}; the champion stays what it was")
    typer.echo(f"version {verdict.version} is the champion")


@command
def rollback() -> None:
    """Make the previous champion the champion again."""
    from prosemill.registry.promotion import roll_back
    from prosemill.registry.store import Registry

    now, before = roll_back(Registry.open())
    typer.echo(f"version {now} is the champion again" + (f", version {before} no more" if before else ""))


@command
def lineage(version: Annotated[str, typer.Argument(help=VERSION)]) -> None:
    """Lead from a version's weights back to its run, commit, corpus and wheels, and check every step."""
    from prosemill.registry.kept import read_kept
    from prosemill.registry.lineage import links
    from prosemill.registry.store import Registry
    from prosemill.registry.tables import print_links

    registry = Registry.open()
    found = registry.version(_number_of(version))
    chain = links(registry, found, read_kept(registry, found), thorough=True)
    print_links(found, chain)
    broken = [link.name for link in chain if link.state == "broken"]
    if broken:
        raise ProsemillError(f"the lineage of version {found.number} is broken at: {', '.join(broken)}")


@command
def package(
    version: Annotated[str | None, typer.Argument(help=f"{VERSION} The champion if left out.")] = None,
    with_base: Annotated[bool, typer.Option("--with-base", help="Put the base model into it too, to be compared with.")] = False,
) -> None:
    """Build a Bento of a version: weights, code and requirements, which `bentoml serve` serves on any machine without this repository."""
    from prosemill.bento.build import build, describe
    from prosemill.registry.champion import ChampionOfRegistry
    from prosemill.registry.store import Registry

    registry = Registry.open()
    found = ChampionOfRegistry().find().version if version is None else registry.version(_number_of(version))
    typer.echo(describe(build(registry, found, with_base=with_base)))


def _number_of(version: str) -> int:
    from prosemill.registry.answers import version_of

    number = int(version) if version.isdecimal() and len(version) < 10 else version_of(version)
    if number is None:
        raise ProsemillError(f"{version} is neither a version's number nor an answer's id: `prosemill versions` lists the versions")
    return number


@command
def generate(
    prompt: Annotated[str, typer.Argument(help="The beginning of a text.")],
    model: Annotated[Path, typer.Option(help="A model folder.")] = TRAINED_MODEL,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to add at most.")] = 100,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.8,
    top_k: Annotated[int, typer.Option(help="Likeliest tokens that are drawn from; 0 for all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Share of the probability that is drawn from.")] = 0.9,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1, what stands there is less likely to come again.")] = 1.0,
    stop: Annotated[list[str] | None, typer.Option(help="A text that ends the answer; may be given more than once.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16, int8 or int4: in what the weights are held.")] = "auto",
) -> None:
    """Continue a text with a model of this machine, as the service does; the text comes as it is written."""
    from prosemill.generate import print_continuation
    from prosemill.generation.sampling import Settings

    try:
        settings = Settings(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            stop=tuple(stop or ()),
            seed=seed,
        )
    except ValueError as error:
        raise ProsemillError(f"--{str(error).replace('_', '-')}") from None
    print_continuation(model, prompt, settings, precision)


@command
def ui(port: Annotated[int, typer.Option(help="Port on this machine.")] = MLFLOW_PORT) -> None:
    """Open the page of tracked runs (MLflow) on this machine alone; Ctrl-C ends it. If there is one already, say where."""
    import os

    from prosemill.orchestration.environment import AUTH, LOCAL, named_mlflow_server, read_house
    from prosemill.orchestration.house import mlflow_command, mlflow_environment, refuse_wrong_ports
    from prosemill.tracking.server import connect

    if (shown := named_mlflow_server() or (read_house() or {}).get("mlflow")) is not None:
        typer.echo(f"tracked runs: {shown}")
        return
    refuse_wrong_ports({"--port": port})
    connect()  # which makes the store, if this comes before the first run
    os.environ.update(mlflow_environment(port))
    typer.echo(f"tracked runs: http://{LOCAL}:{port}  (user and password: {AUTH}; Ctrl-C ends the page)")
    command = mlflow_command(port)
    os.execv(command[0], command)  # noqa: S606 # no shell is involved


@command
def up(
    prefect_port: Annotated[int, typer.Option(help="Port of Prefect's server and page on this machine.")] = PREFECT_PORT,
    mlflow_port: Annotated[int, typer.Option(help="Port of MLflow's page on this machine.")] = MLFLOW_PORT,
    service_port: Annotated[int, typer.Option(help="Port of the champion's service on this machine.")] = SERVICE_PORT,
) -> None:
    """Start all servers of this workspace: Prefect with deployments and a worker, MLflow's page, the service; Ctrl-C ends them."""
    from prosemill.orchestration.house import Ports, live_in

    live_in(Ports(prefect=prefect_port, mlflow=mlflow_port, service=service_port))
