"""A Hugging Face model at a pinned commit, or a local folder of the same format: configuration, tokenizer and safetensors alone.

    metrics = write_hub_model(HubModel(source="hub", repository="owner/name", revision="…"), folder)

Pickled weights and Python files are never fetched, and none of a local folder are read. transformers sees a folder of links to the files
that are known here, so nothing else in the repository (adapters, code, other frameworks' weights) has a say.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from prosemill.base_model.saving import quiet, save_base_model
from prosemill.console import say
from prosemill.corpus.folder import list_files
from prosemill.errors import ProsemillError, first_line
from prosemill.families import families, family_named, family_of
from prosemill.hub import hub_errors, refuse_endpoint, refuse_wrong_name
from prosemill.params import HubModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

KEY = "download.model.repository"
WEIGHTS = ("model.safetensors", "model-*.safetensors")
SETTINGS = ("config.json", "generation_config.json", "model.safetensors.index.json", "chat_template.jinja")
TOKENIZER = ("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt", "*.model")
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")  # a tokenizer can be made of each
ENCODER_HEADS = ("ForMaskedLM", "ForPreTraining", "EncoderModel")
KNOWN = (*SETTINGS, *TOKENIZER, *WEIGHTS)
OTHER_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.gguf", "*.onnx", "*.safetensors")


def write_hub_model(model: HubModel, folder: Path) -> dict[str, Any]:
    """Fetch the model or read its local folder, write it as one safetensors file in its own dtype, and return its metrics.

    Raises:
        ProsemillError: there is no network, or the model is not found, incomplete, broken, in another format, of an unknown family, or
            brings code of its own.
    """
    source = _local_folder(model) or fetch_model(model)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="base-model-links-") as links:
        view = _view(source, Path(links), model.repository)
        say(f"reading the model {model.repository}")
        with quiet():
            return save_base_model(*_load(view, model.repository), folder)


def _local_folder(model: HubModel) -> Path | None:
    """The repository as a folder's real path, or None if it is a name on the hub."""
    path = Path(model.repository).expanduser()
    if path.is_dir():
        return path.resolve()
    if model.repository.startswith((".", "/", "~")):
        raise ProsemillError(f"`{KEY}`: the folder {model.repository} does not exist")
    return None


def fetch_model(model: HubModel) -> Path:
    """The known files of the repository's commit, in huggingface_hub's own cache; with HF_HUB_OFFLINE what lies there must do.

    Raises:
        ProsemillError: the name or endpoint is not one, no commit is pinned, the hub fails, or the model has no safetensors.
    """
    refuse_wrong_name(model.repository, KEY)
    if model.revision is None:
        raise ProsemillError("`download.model.revision` is missing: pin the model's commit, 40 hexadecimal digits of its history page")
    from huggingface_hub import HfApi, constants, snapshot_download

    refuse_endpoint(constants.ENDPOINT)
    with hub_errors(f"model {model.repository} at {model.revision}"), _bars_on_terminals_only():
        if not constants.HF_HUB_OFFLINE:
            siblings = HfApi().model_info(model.repository, revision=model.revision).siblings or []
            _require_safetensors([sibling.rfilename for sibling in siblings], model.repository)
            say(f"fetching {model.repository} at {model.revision[:8]}")
        return Path(snapshot_download(model.repository, revision=model.revision, allow_patterns=list(KNOWN))).resolve()


@contextmanager
def _bars_on_terminals_only() -> Iterator[None]:
    """Keep huggingface_hub's progress bars out of logs."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hidden = are_progress_bars_disabled() or sys.stderr.isatty()
    if not hidden:
        disable_progress_bars()
    try:
        yield
    finally:
        if not hidden:
            enable_progress_bars()


def _files(source: Path, patterns: tuple[str, ...]) -> list[PurePosixPath]:
    # In huggingface_hub's own cache a snapshot's files are links to the model's blobs, two folders up.
    boundary = source.parents[1] if source.parent.name == "snapshots" else source
    return list_files(source, patterns, boundary)


def _view(source: Path, view: Path, repository: str) -> Path:
    """A folder of links to the known files. Raises `ProsemillError` if one is missing, or the config is not one to be loaded."""
    from prosemill.pretrained import refuse_remote_code

    _require_safetensors([name.as_posix() for name in _files(source, (*WEIGHTS, *OTHER_WEIGHTS))], repository)
    for name in _files(source, KNOWN):
        (view / name).symlink_to(source / name)
    try:
        refuse_remote_code(view)
    except ProsemillError as error:
        raise ProsemillError(str(error).replace(str(view), repository)) from None
    _check_config(_read_json(view / "config.json", repository), repository)
    _check_shards(view, repository)
    if not any((view / name).exists() for name in VOCABULARIES):
        raise ProsemillError(f"{repository} lacks its tokenizer ({', '.join(VOCABULARIES)}): fetch it again, whole, or choose another")
    return view


def _require_safetensors(names: list[str], repository: str) -> None:
    """Raise `ProsemillError`, naming the other weights among the files, unless there are safetensors."""
    if any(fnmatchcase(name, pattern) for name in names for pattern in WEIGHTS):
        return
    others = sorted(name for name in names if any(fnmatchcase(name, pattern) for pattern in OTHER_WEIGHTS))
    fault = (
        f"only {', '.join(others[:5])}: convert it to model.safetensors first" if others else "and no other weights: choose another model"
    )
    raise ProsemillError(f"{repository} has no model.safetensors, {fault}")


def _read_json(path: Path, repository: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ProsemillError(f"{path.name} of {repository} is not JSON ({error}): fetch it again") from None
    if not isinstance(content, dict):
        raise ProsemillError(f"{path.name} of {repository} is not a JSON object: fetch it again")
    return content


def _check_config(config: dict[str, Any], repository: str) -> None:
    what = f"`{KEY}`: {repository}"
    if any(str(name).endswith(ENCODER_HEADS) for name in config.get("architectures") or []):
        raise ProsemillError(f"{what} is an encoder alone, which writes no text: choose a model of {', '.join(families())}")
    family_named(config.get("model_type"), whose=what)
    if "quantization_config" in config:
        raise ProsemillError(f"`{KEY}`: {repository} is quantised, and such weights cannot be trained: choose its original")


def _check_shards(view: Path, repository: str) -> None:
    """Raise `ProsemillError` unless the weights are one file, or every file that their index names is there."""
    index = view / "model.safetensors.index.json"
    if (view / "model.safetensors").exists():
        return
    if not index.exists():
        raise ProsemillError(f"{repository} has weights in several files, but no {index.name}: fetch it again, whole")
    weights = _read_json(index, repository).get("weight_map")
    names = {str(name) for name in weights.values()} if isinstance(weights, dict) else set()
    present = {path.name for path in view.iterdir()}
    missing = sorted(names - present)
    if missing:
        raise ProsemillError(f"{repository} lacks {', '.join(missing[:5])}, which {index.name} names: fetch it again, whole")


def _load(view: Path, repository: str) -> "tuple[PreTrainedModel, PreTrainedTokenizerFast]":
    """The model in its own dtype and its fast tokenizer."""
    import safetensors
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        tokenizer = AutoTokenizer.from_pretrained(view, local_files_only=True, trust_remote_code=False)
        model, report = family_of(view).load_with_report(view, dtype="auto", use_safetensors=True)
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError, ImportError, safetensors.SafetensorError) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ProsemillError(f"{repository} cannot be loaded ({reason}): fetch it again or choose another") from None
    faults = sorted(str(name) for fault in ("missing_keys", "mismatched_keys") for name in report[fault])
    if faults:
        raise ProsemillError(f"{repository} lacks {len(faults)} of its weights ({', '.join(faults[:3])}): fetch it again or choose another")
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ProsemillError(f"{repository} has no fast tokenizer (tokenizer.json): choose another model")
    return model, tokenizer
