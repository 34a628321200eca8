"""What lies in a Bento is served as it was packaged, or not at all."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from prosemill.bento.packed import BASE, EVALUATION, MODEL, SEAL, Packed, seal
from prosemill.errors import ProsemillError
from prosemill.serving.settings import ServiceSettings
from prosemill.serving.source import check_source


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A version that is sealed, with its base model."""
    (tmp_path / MODEL).mkdir()
    (tmp_path / MODEL / "model.safetensors").write_bytes(b"weights")
    (tmp_path / MODEL / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    (tmp_path / BASE).mkdir()
    (tmp_path / BASE / "model.safetensors").write_bytes(b"base weights")
    (tmp_path / EVALUATION).write_text('{"serving": {"cost_int8": 0.001}}', encoding="utf-8")
    seal(tmp_path, number=3, facts={"git_commit": "c" * 40})
    return tmp_path


def test_a_sealed_version_is_found_again(folder: Path) -> None:
    found = Packed(folder).find()
    assert (found.number, found.facts, found.base) == (3, {"git_commit": "c" * 40}, folder / BASE)
    with found.model() as model:
        assert found.metrics() == {"serving": {"cost_int8": 0.001}}
        assert (model / "model.safetensors").read_bytes() == b"weights"


@pytest.mark.parametrize(
    "alter",
    [
        lambda folder: (folder / MODEL / "model.safetensors").write_bytes(b"Weights"),
        lambda folder: (folder / MODEL / "generation_config.json").touch(),
        lambda folder: (folder / MODEL / "model.safetensors").rename(folder / "model.safetensors"),
        lambda folder: (folder / MODEL / "model.safetensors").unlink(),
        lambda folder: (folder / BASE / "model.safetensors").write_bytes(b"Base weights"),
        lambda folder: shutil.rmtree(folder / BASE),
        lambda folder: (folder / EVALUATION).write_text('{"serving": {"cost_int4": 0.0}}', encoding="utf-8"),
    ],
    ids=["a byte", "one file more", "moved", "gone", "a byte of the base", "no base", "another evaluation"],
)
def test_an_altered_version_is_refused(folder: Path, alter: Callable[[Path], object]) -> None:
    check_source(Packed(folder), ServiceSettings())
    alter(folder)
    with pytest.raises(ProsemillError, match="was altered after version 3 was packaged"):
        check_source(Packed(folder), ServiceSettings())


def test_a_version_that_is_sealed_without_its_base_model_has_none(folder: Path) -> None:
    shutil.rmtree(folder / BASE)
    seal(folder, number=3, facts={})
    check_source(Packed(folder), ServiceSettings())
    assert Packed(folder).find().base is None


@pytest.mark.parametrize("content", [None, "", "[]", "{", json.dumps({"version": 3}), '{"version": "x", "facts": {}, "digest": ""}'])
def test_a_broken_seal_is_refused(folder: Path, content: str | None) -> None:
    (folder / SEAL).unlink()
    if content is not None:
        (folder / SEAL).write_text(content, encoding="utf-8")
    with pytest.raises(ProsemillError, match=r"VERSION\.json cannot be read .* build it with `prosemill package`"):
        check_source(Packed(folder), ServiceSettings())
