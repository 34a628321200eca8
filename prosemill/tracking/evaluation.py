"""An evaluation, written to the run of the model that it measured."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prosemill.digests import sha256_of_value
from prosemill.errors import ProsemillError
from prosemill.tracking.run import open_run
from prosemill.workspace import CORPUS

ROWS = ("base", "trained", "trigram", "human", "unrelated", "serving")


def track_evaluation(metrics: Mapping[str, Any], samples: Sequence[Mapping[str, str]], files: Sequence[Path], *, trained: Path) -> None:
    """Log an evaluation to the run that `trained`/run.json names.

    Args:
        metrics: The content of metrics/evaluation.json; every number of its rows becomes a metric such as `trained.bits_per_byte`.
        samples: The continuations; in the run's table each row says by which protocol (a digest) it was made.
        files: The report and its pictures.
        trained: The trained model's folder.
    """
    identity = read_identity(trained)
    split = metrics["data"]["split"]
    protocol = sha256_of_value(metrics["protocol"])[:8]
    with open_run(identity["fingerprint"], name=identity["name"]) as run:
        run.log_metrics(numbers_of(metrics))
        run.log_dataset(f"{split}_split", str(metrics["data"]["digest"]), source=str(CORPUS / split))
        run.log_table("evaluation_samples", [{"protocol": protocol, **sample} for sample in samples])
        for file in files:
            run.log_file(file, "evaluation")


def numbers_of(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of metrics/evaluation.json as MLflow's metrics, such as `trained.bits_per_byte`."""
    return {f"{row}.{name}": value for row in ROWS for name, value in metrics.get(row, {}).items() if isinstance(value, int | float)}


def read_identity(trained: Path) -> dict[str, str]:
    """The content of a trained model's run.json. Raises `ProsemillError` if it is missing or broken."""
    path = trained / "run.json"
    try:
        identity: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ProsemillError(f"{path} is missing: run `dvc repro train` to make the trained model again") from None
    except ValueError as error:
        raise ProsemillError(f"{path} is broken ({error}): run `dvc repro --force train`") from None
    return identity
