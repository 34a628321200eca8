"""A text continued at the terminal, with the engine that serves.

print_continuation(Path("models/trained"), "The history of", Settings(seed=1), "auto")
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import typer

from prosemill.errors import ProsemillError
from prosemill.generation.precision import Precision
from prosemill.generation.sampling import Settings
from prosemill.generation.writer import Writer, choose_precision
from prosemill.registry.evaluation import costs_in
from prosemill.workspace import METRICS, TRAINED_MODEL


def print_continuation(folder: Path, prompt: str, settings: Settings, precision: str) -> None:
    """Print a prompt, and what a model adds to it, as it comes.

    Raises:
        ProsemillError: the folder holds no model, the precision is none, the prompt is empty or too long, or the model cannot write.
    """
    if precision != "auto" and precision not in get_args(Precision):
        raise ProsemillError(f"--precision must be auto, {', '.join(get_args(Precision))}, not {precision}")
    if not prompt or "\0" in prompt:
        raise ProsemillError("the prompt is empty or holds a null character: give a text to go on with")
    if not folder.is_dir():
        raise ProsemillError(f"{folder} is no folder: `dvc repro` makes {TRAINED_MODEL}, and --model names another")
    chosen = next((each for each in get_args(Precision) if each == precision), None) or choose_precision(_costs(folder))
    with Writer.open(folder, precision=chosen, num_rows=1) as writer:
        try:
            answer = writer.answer(prompt, settings)
        except ValueError as error:
            raise ProsemillError(str(error)) from None
        typer.echo(prompt, nl=False)
        for piece in answer:
            typer.echo(piece, nl=False)
        typer.echo()
    assert answer.end is not None
    if answer.end.reason == "failed":
        raise ProsemillError(f"the model could not answer: {answer.end.error}")


def _costs(folder: Path) -> Mapping[str, float]:
    """What the evaluation says of precisions, of the model that it evaluated."""
    try:
        content = json.loads((METRICS / "evaluation.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return costs_in(content) if folder == TRAINED_MODEL else {}
