"""What lies in a Bento is served as it was packaged, or not at all."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from prosemill.bento.packed import EVALUATION, MODEL, SEAL, Packed, seal
from prosemill.errors import ProsemillError
from prosemill.serving.settings import ServiceSettings
from prosemill.serving.source import check_source


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A version that is sealed."""
    (tmp_path / MODEL).mkdir()
    (tmp_path / MODEL / "model.safetensors").write_bytes(b"weights")
    (tmp_path / EVALUATION).write_text('{"serving": {"cost_int8": 0.001}}', encoding="utf-8")
    seal(tmp_path, number=3, facts={"git_commit": "c" * 40})
    return tmp_path


def test_a_sealed_version_is_found_again(folder: Path) -> None:
    found = Packed(folder).find()
    assert (found.number, found.facts, found.base) == (3, {"git_commit": "c" * 40}, None)
    with found.model() as model:
        assert found.metrics() == {"serving": {"cost_int8": 0.001}}
        assert (model / "model.safetensors").read_bytes() == b"weights"


@pytest.mark.parametrize(
    "alter",
    [
        lambda folder: (folder / MODEL / "model.safetensors").write_bytes(b"Weights"),
        lambda folder: (folder / MODEL / "config.json").touch(),
        lambda folder: (folder / MODEL / "model.safetensors").rename(folder / "model.safetensors"),
        lambda folder: (folder / MODEL / "model.safetensors").unlink(),
    ],
    ids=["a byte", "one file more", "moved", "gone"],
)
def test_an_altered_version_is_refused(folder: Path, alter: Callable[[Path], object]) -> None:
    check_source(Packed(folder), ServiceSettings())
    alter(folder)
    with pytest.raises(ProsemillError, match="was altered after version 3 was packaged"):
        check_source(Packed(folder), ServiceSettings())


@pytest.mark.parametrize("content", [None, "", "[]", "{", json.dumps({"version": 3}), '{"version": "x", "facts": {}, "digest": ""}'])
def test_a_broken_seal_is_refused(folder: Path, content: str | None) -> None:
    (folder / SEAL).unlink()
    if content is not None:
        (folder / SEAL).write_text(content, encoding="utf-8")
    with pytest.raises(ProsemillError, match=r"VERSION\.json cannot be read .* build it with `prosemill package`"):
        check_source(Packed(folder), ServiceSettings())
