"""Tiny random models of any family, with the tokenizer of another folder."""

import json
import shutil
from pathlib import Path

from transformers import PreTrainedModel

from prosemill.families import families
from prosemill.params import ScratchModel

VOCABULARY = 1024  # of the tiny model's tokenizer


def write_model(folder: Path, family: str, tokenizer: Path, *, context_size: int = 128, seed: int = 0) -> PreTrainedModel:
    """Draw a model of two layers and write its folder; `tokenizer` is the folder that its tokenizer is taken from."""
    shape = ScratchModel(source="scratch", name="tiny", family=family, hidden_size=32, num_heads=4, context_size=context_size, seed=seed)
    model = families()[family].draw(shape, VOCABULARY)
    model.save_pretrained(folder)
    if tokenizer != folder:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(tokenizer / name, folder / name)
    (folder / "SOURCE.json").write_text(json.dumps({"name": "tiny"}), encoding="utf-8")
    return model
