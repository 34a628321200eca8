"""From a section of params to `models/base`: chooses the source, and publishes the folder whole or not at all."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from prosemill.base_model.gguf import write_wheel_model
from prosemill.base_model.hub import write_hub_model
from prosemill.base_model.scratch import write_scratch_model
from prosemill.console import say
from prosemill.locks import alone
from prosemill.params import BaseModel, Download, HubModel, ScratchModel, WheelModel
from prosemill.shards import write_durably
from prosemill.workspace import SHARD_WORK

SOURCE_FILE = "SOURCE.json"


def build_base_model(section: Download, corpus: Path, output: Path) -> dict[str, Any]:
    """Fetch or make the base model.

    The folder is written below `.shards` and renamed when it is whole, so a killed call leaves no half-written model.

    Args:
        section: Params; `model` counts here.
        corpus: The corpus folder, whose train split a scratch model's tokenizer is trained on.
        output: Folder that is made anew: config.json, model.safetensors, tokenizer.json, …, SOURCE.json.

    Returns:
        `name`, `family`, `num_parameters`, `dtype`, `vocabulary_size`, `context_size` (tokens, or None) and `num_bytes_without_token`.

    Raises:
        ProsemillError: the model cannot be fetched, is broken, names code of its own or is of an unknown family.
    """
    scratch = SHARD_WORK / "base-model"
    with alone(SHARD_WORK / "base-model.lock", "base-model"):
        shutil.rmtree(scratch, ignore_errors=True)  # of a killed call
        scratch.mkdir(parents=True)
        try:
            metrics = _write(section.model, corpus, scratch)
            _publish(scratch, section.model, output)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)  # a full disk gets its space back
    metrics["name"] = section.model.name
    if lost := metrics["num_bytes_without_token"]:
        say(f"note: the base model's tokenizer lacks {lost} rare bytes, mostly control characters; a text that holds one loses it")
    return metrics


def _write(model: BaseModel, corpus: Path, folder: Path) -> dict[str, Any]:
    match model:
        case WheelModel():
            return write_wheel_model(model, folder)
        case HubModel():
            return write_hub_model(model, folder)
        case ScratchModel():
            return write_scratch_model(model, corpus, folder)


def _facts(model: BaseModel) -> dict[str, Any]:
    """Where the weights come from, under which licence, and whom to credit."""
    match model:
        case WheelModel():
            origin = {"requirement": model.requirement, "member": model.member, "sha256": model.sha256}
        case HubModel():
            origin = {"repository": model.repository, "revision": model.revision or "a local folder"}
        case ScratchModel():
            mine = {"license": "none needed", "attribution": "random weights; the tokenizer is trained on the corpus"}
            return {"name": model.name, "source": model.source, "seed": model.seed, **mine}
    return {"name": model.name, "source": model.source, **origin, "license": model.license, "attribution": model.attribution}


def _publish(scratch: Path, model: BaseModel, output: Path) -> None:
    """Put the whole folder in its place once it is on the disk."""
    mode = (scratch / "config.json").stat().st_mode
    for path in sorted(scratch.iterdir()):
        path.chmod(mode)  # safetensors writes for its owner alone
        with path.open("rb") as file:
            os.fsync(file.fileno())
    facts = json.dumps(_facts(model), indent=2, sort_keys=True, ensure_ascii=False)
    write_durably(scratch / SOURCE_FILE, facts + "\n")
    if output.exists():
        shutil.rmtree(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    scratch.replace(output)
