"""The engine is the service's to choose: `PROSEMILL_ENGINE`."""

from pathlib import Path

import pytest

from prosemill.errors import ProsemillError
from prosemill.generation import engines
from prosemill.generation.on_vllm import VllmEngine
from prosemill.generation.sampling import Settings
from prosemill.serving.champion import load
from prosemill.serving.settings import ServiceSettings
from prosemill.serving.source import check_source
from tests.generation.models import VLLM_FAMILIES, VLLM_WIDTH, draw, folder_of, needs_vllm
from tests.serving.conftest import VERSION
from tests.serving.test_follower import Promoted


def test_it_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ServiceSettings.read().engine == "own"
    monkeypatch.setenv("PROSEMILL_ENGINE", "vllm")
    assert ServiceSettings.read().engine == "vllm"
    monkeypatch.setenv("PROSEMILL_ENGINE", "vlm")
    with pytest.raises(ProsemillError, match=r"PROSEMILL_ENGINE=vlm: Input should be 'own' or 'vllm'"):
        ServiceSettings.read()


def test_a_model_that_vllm_does_not_serve_is_refused_before_anything_is_loaded(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda _: object())  # as if it were installed
    folder, settings = folder_of(draw("t5"), tiny_model, tmp_path), ServiceSettings(engine="vllm", precision="bf16")
    refused = "is of the family 't5', which vLLM does not serve here: unset PROSEMILL_ENGINE"
    with pytest.raises(ProsemillError, match=f"version {VERSION + 1} {refused}"):
        check_source(Promoted(folder), settings)
    with pytest.raises(ProsemillError, match=f"PROSEMILL_BASE={folder} {refused}"):
        check_source(Promoted(tiny_model), settings.model_copy(update={"base": folder}))
    check_source(Promoted(tiny_model), settings)
    with pytest.raises(ProsemillError, match=refused):
        load(Promoted(folder), settings)


@needs_vllm
def test_a_version_and_its_base_are_served_by_vllm(tiny_model: Path, tmp_path: Path) -> None:
    tiny = draw(VLLM_FAMILIES[0], hidden_size=VLLM_WIDTH)
    folder = folder_of(tiny, tiny_model, tmp_path)
    champion = load(Promoted(folder), ServiceSettings(engine="vllm", num_rows=2, base=folder))
    try:
        assert champion.precision in ("bf16", "fp32")  # whatever the evaluation says of int8
        assert all(isinstance(writer.engine, VllmEngine) for writer in champion.writers)
        texts = ["".join(writer.answer("The history of", Settings(temperature=0, max_new_tokens=9))) for writer in champion.writers]
        assert texts[0] == texts[1] != ""
    finally:
        champion.close()
    assert not any(writer.engine.is_alive for writer in champion.writers)
