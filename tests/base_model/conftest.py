"""What the tests of base models share: tiny GGUF files, wheels that hold them, and an isolated cache with the real pip."""

import hashlib
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from prosemill.base_model import gguf
from prosemill.params import Download, WheelModel, parse_section

if TYPE_CHECKING:
    from gguf import GGUFWriter

MEMBER = "tiny_model/tiny.gguf"
CHARACTERS = 32  # width of the tiny model; quantised rows come in blocks of 32
MERGES = ["Ġ t", "h e", "Ġt he", "Ċ Ċ", "Ġ Ġ", "i n", "a n"]

WriteGguf = Callable[..., Path]
WheelOf = Callable[[Path], WheelModel]


def download(model: WheelModel | dict[str, object]) -> Download:
    """A download section with this base model; its corpus is never read."""
    section = {"corpus": {"source": "python-source", "name": "python"}, "model": model}
    return parse_section("download", Download, section)


def byte_tokens() -> list[str]:
    """The end of text, two chat tokens, all bytes and a few merges, as a GGUF spells them."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *bytes_to_unicode().values(), *(merge.replace(" ", "") for merge in MERGES)]


@pytest.fixture
def no_child(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Convert in the test's own process."""
    import torch

    def call(function: Callable[..., object], *arguments: object, **_: object) -> object:
        return function(*arguments)

    num_threads = torch.get_num_threads()
    monkeypatch.setattr(gguf, "run_confined", call)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def write_gguf(tmp_path: Path) -> WriteGguf:
    """Write a LLaMA of one layer with random weights, most of them quantised, and a byte-level tokenizer."""
    from gguf import GGMLQuantizationType, GGUFWriter, quantize

    def write(
        *,
        split: str = "smollm",
        architecture: str = "llama",
        num_layers: int = 1,
        add_bos: bool = False,
        quantisation: str = "Q4_1",
        drop: str | None = None,
        extra: str | None = None,
        tokens: Sequence[str] | None = None,
    ) -> Path:
        path = tmp_path / "tiny.gguf"
        names = list(tokens or byte_tokens())
        writer = GGUFWriter(path, architecture)
        _describe(writer, num_layers=num_layers, names=names, split=split, add_bos=add_bos)
        for name, shape in _shapes(len(names)).items():
            if name == drop:
                continue
            kind = GGMLQuantizationType.F32 if len(shape) == 1 else GGMLQuantizationType[quantisation]
            values = np.random.default_rng(len(name)).normal(0.0, 0.3, shape).astype(np.float32)
            writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)
        if extra is not None:
            writer.add_tensor(extra, np.ones(8, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def _describe(writer: "GGUFWriter", *, num_layers: int, names: list[str], split: str, add_bos: bool) -> None:
    """What a GGUF file says of its model and its tokenizer."""
    writer.add_block_count(num_layers)
    writer.add_context_length(64)
    writer.add_embedding_length(CHARACTERS)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(names))
    writer.add_rope_dimension_count(16)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(names)
    writer.add_token_types([3, 3, 3, *[1] * (len(names) - 3)])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(add_bos)


def _shapes(vocabulary_size: int) -> dict[str, tuple[int, ...]]:
    width, narrow, feed_forward = CHARACTERS, CHARACTERS // 2, 64
    layer = {
        "attn_norm": (width,),
        "attn_q": (width, width),
        "attn_k": (narrow, width),
        "attn_v": (narrow, width),
        "attn_output": (width, width),
        "ffn_norm": (width,),
        "ffn_gate": (feed_forward, width),
        "ffn_up": (feed_forward, width),
        "ffn_down": (width, feed_forward),
    }
    ends = {"token_embd.weight": (vocabulary_size, width), "output_norm.weight": (width,)}
    return ends | {f"blk.0.{name}.weight": shape for name, shape in layer.items()}


@pytest.fixture
def wheel_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WheelOf:
    """Put a file into a wheel where the real pip finds it; returns the model section that names it."""
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("PROSEMILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))

    def build(path: Path) -> WheelModel:
        wheel = index / "tiny_model-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(path, MEMBER)
            archive.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
            archive.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
        sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
        return WheelModel(
            source="wheel",
            name="tiny",
            requirement="tiny-model==1.0",
            sha256=sha256,
            member=MEMBER,
            license="Apache-2.0",
            attribution="somebody",
        )

    return build
