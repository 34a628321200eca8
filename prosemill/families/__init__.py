"""What differs between model families, one file per family; everything else in this repository knows none of them.

    family = family_of(Path("models/base"))     # by the folder's config.json
    model = family.load(Path("models/base"))
    batch = family.pack(blocks, model.config, end_of_text_id, documents_stop_attention=True)

`Family` (family.py) says what a family must tell. `Decoder` (decoder.py) tells most of it for models that predict a text from left to
right; such a family is one short file that names its `FAMILY` (see CONTRIBUTING.md). A file of this folder is found by itself.
"""

import importlib
import json
import pkgutil
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prosemill.errors import ProsemillError
from prosemill.families.family import Batch, Family, Window

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Batch", "Family", "Window", "families", "family_named", "family_of", "family_of_model", "read_config"]

PARTS = ("family", "decoder")  # modules of this folder that are no family


@cache
def families() -> dict[str, Family]:
    """The families by their names, which are transformers' `model_type`s, in alphabetical order."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in PARTS)
    found: list[Family] = [importlib.import_module(f"{__name__}.{name}").FAMILY for name in names]
    return {family.name: family for family in found}


def family_named(name: object, *, whose: str) -> Family:
    """The family of this name.

    Args:
        name: What a config calls its `model_type`.
        whose: The model, for the message.

    Raises:
        ProsemillError: there is no such family.
    """
    found = families().get(str(name))
    if found is None:
        raise ProsemillError(
            f"{whose} is of the family {name!r}, which is not supported: choose a model of {', '.join(families())} "
            "(CONTRIBUTING.md tells how to add a decoder family)"
        )
    return found


def family_of(folder: Path) -> Family:
    """The family of a model folder, by its config.json. Raises `ProsemillError` if there is none, it is broken or unsupported."""
    return family_named(read_config(folder).get("model_type"), whose=str(folder))


def family_of_model(model: "PreTrainedModel") -> Family:
    """The family of a model that is loaded."""
    return families()[model.config.model_type]


def read_config(folder: Path) -> dict[str, Any]:
    """The content of a model folder's config.json. Raises `ProsemillError` if it is missing or broken."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ProsemillError(f"{path} is missing: run `dvc repro download` to fetch the base model again") from None
    except (ValueError, RecursionError) as error:
        raise ProsemillError(f"{path} is not JSON ({error}): run `dvc repro download` to fetch the base model again") from None
    if not isinstance(config, dict):
        raise ProsemillError(f"{path} is not a JSON object: run `dvc repro download` to fetch the base model again")
    return config
