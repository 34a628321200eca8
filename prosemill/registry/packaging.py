"""A trained model as an MLflow package that loads anywhere: built, logged, loaded back in a fresh process, and compared.

    package = log_package(TRAINED_MODEL, run_id="…", name="SmolLM2", params={})

The package is a `pyfunc` model from code (prosemill/packaged) for all families: weights, the few modules that run them, a signature, an
input example and exact requirements.
"""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import prosemill
from prosemill.console import say
from prosemill.errors import ProsemillError
from prosemill.registry.store import package_digest
from prosemill.tracking.server import connect, experiment_id, needing_answers, tracking_uri

LOGIT_TOLERANCE = 1e-5  # largest difference of a logit between the package and the trained model, in fp32
PROBE = Path(__file__).with_name("probe.py")

TEXTS = ["The history of the city begins", "In physics, a field is\na quantity; naïve – 東京"]
"""What both are asked for logits."""
PROMPTS = ["The history of", ""]
PARAMS: dict[str, Any] = {"max_new_tokens": 8, "temperature": 0.8, "top_p": 0.9, "seed": 1}
"""What both are asked to continue, and how."""


@dataclass(frozen=True)
class Package:
    """A package that was logged, and has shown that it is the trained model."""

    model_id: str
    """MLflow's logged model."""
    digest: str
    """SHA-256 over its files."""
    logit_difference: float
    """Largest difference of a logit between it and the trained model."""


def log_package(trained: Path, *, run_id: str, name: str, params: Mapping[str, str]) -> Package:
    """Log a trained model's folder as a package of a run.

    Args:
        trained: The folder, as the train stage leaves it.
        run_id: The MLflow run that trained it.
        name: What the package is called in the run.
        params: Shown beside the package in MLflow's page.

    Raises:
        ProsemillError: what was logged, loaded back in a fresh process, is not the trained model.
    """
    from prosemill.pretrained import telling_a_full_disk  # which imports torch; the gate needs but a number of this module

    client = connect().MlflowClient()
    with tempfile.TemporaryDirectory(prefix="prosemill-package-") as scratch:
        folder = Path(scratch) / "package"
        say("packaging the model")
        with telling_a_full_disk(folder):
            _build(trained, folder, Path(scratch) / "code")
        with needing_answers(), telling_a_full_disk(folder):
            made = client.create_logged_model(experiment_id(), name, run_id, params=dict(params), model_type="language-model")
            client.log_model_artifacts(made.model_id, str(folder))
            client.finalize_logged_model(made.model_id, "READY")
        say("loading the package back in a fresh process")
        return Package(made.model_id, package_digest(folder), compare(f"models:/{made.model_id}", trained))


def compare(uri: str, trained: Path) -> float:
    """The largest difference of a logit between a package and a trained model's folder; their texts must be equal.

    Raises:
        ProsemillError: the package does not load, gives other logits, or continues the prompts otherwise.
    """
    import numpy as np
    import pandas as pd
    from transformers.utils import logging

    from prosemill.packaged import PackagedModel

    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="prosemill-probe-") as scratch:
        questions, answers = Path(scratch) / "questions.json", Path(scratch) / "answers.npz"
        questions.write_text(json.dumps({"texts": TEXTS, "prompts": PROMPTS, "params": PARAMS}), encoding="utf-8")
        # -P: nothing beside the script is importable. Elsewhere than here, so that no checkout is either.
        command = [sys.executable, "-P", str(PROBE.absolute()), uri, str(questions), str(answers)]
        with subprocess.Popen(
            command, cwd=scratch, env=_environment(), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        ) as probe:
            # While it imports its libraries, which takes longest.
            model = PackagedModel()
            model.open(trained)
            logits = model.logits(TEXTS)
            said = probe.communicate()[1]
        if probe.returncode != 0:
            last = (said.strip().splitlines() or ["it says nothing"])[-1]
            raise ProsemillError(f"the package does not load in a fresh process ({last}): nothing is registered; report this as a bug")
        with np.load(answers) as found:
            pairs = zip(logits, [found[f"logits-{number}"] for number in range(len(TEXTS))], strict=True)
            difference = max(float(np.abs(ours - theirs).max()) for ours, theirs in pairs)
            generated = [str(text) for text in found["generated"]]
            foreign = [str(name) for name in found["foreign"]]
    if foreign:
        raise ProsemillError(f"the package lacks {foreign[0]}, which it imports: nothing is registered; report this as a bug")
    expected = list(model.predict(None, pd.DataFrame({"prompt": PROMPTS}), PARAMS)["generated_text"])
    if not difference <= LOGIT_TOLERANCE or generated != expected:
        fault = (
            f"logits differ by {difference:.1e}, at most {LOGIT_TOLERANCE:.0e} is allowed" if generated == expected else "its texts differ"
        )
        raise ProsemillError(f"the package is not the trained model ({fault}): nothing is registered; report this as a bug")
    return difference


def _build(trained: Path, folder: Path, code: Path) -> None:
    """Write the package's folder; `code` is where its modules are gathered first."""
    import pandas as pd
    from mlflow import pyfunc

    from prosemill.packaged import CODE, MODEL, REQUIREMENTS

    copy_code(CODE, code)
    pyfunc.save_model(
        folder,
        python_model=str(Path(prosemill.__file__).parent / "packaged" / "entry.py"),
        artifacts={MODEL: str(trained.absolute())},
        code_paths=[str(code / "prosemill")],
        signature=_signature(),
        input_example=pd.DataFrame({"prompt": ["The history of"]}),
        pip_requirements=pinned(REQUIREMENTS),
    )


def pinned(libraries: Iterable[str]) -> list[str]:
    """Requirements of the versions that are installed here; without the build's mark, as `+cpu`, which no index knows."""
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in libraries]


def copy_code(names: Iterable[str], folder: Path) -> None:
    """Copy files and folders of `prosemill`, so that they can be imported from a folder."""
    source, target = Path(prosemill.__file__).parent, folder / "prosemill"
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source / name, target / name)


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    from prosemill.packaged import DEFAULTS

    params = [ParamSpec(name, DataType.long if isinstance(value, int) else DataType.double, value) for name, value in DEFAULTS.items()]
    text = DataType.string
    return ModelSignature(
        inputs=Schema([ColSpec(text, "prompt")]), outputs=Schema([ColSpec(text, "generated_text")]), params=ParamSchema(params)
    )


def _environment() -> dict[str, str]:
    """The environment of this process, without what would let a checkout in."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return inherited | {"MLFLOW_TRACKING_URI": tracking_uri(), "PYTHONDONTWRITEBYTECODE": "1"}
