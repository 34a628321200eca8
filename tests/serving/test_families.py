"""A service of each family writes and scores as the model does; the real one, `bentoml serve` beside a registry, of an encoder-decoder."""

import queue
from pathlib import Path
from typing import Any

import openai
import pytest
import requests

from prosemill.families import families
from prosemill.generation.sampling import Settings
from prosemill.generation.writer import Writer
from tests.models import write_model
from tests.serving.conftest import serving
from tests.serving.real import make_champion, real_service
from tests.waiting import LIMIT

PROMPT = "The history of"
TEXT = "The history of the city begins, as it ends, with a river."
DRAWN: dict[str, Any] = {"temperature": 2.0, "top_p": 1.0, "seed": 5}
NUM_NEW_TOKENS = 24


@pytest.mark.parametrize("family", sorted(families()))
def test_it_writes_and_scores_as_the_model_does(family: str, tmp_path: Path, tiny_model: Path) -> None:
    write_model(tmp_path, family, tiny_model)
    with serving(tmp_path) as service:
        compare(service.url, tmp_path)


def test_the_real_service_does_as_well(
    tmp_path: Path, tiny_model: Path, prose: list[str], empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = make_champion(tmp_path / "workspace", tiny_model, [text[:400] for text in prose[:6]], empty_store, family="t5")
    with real_service(workspace.folder, tmp_path / "log", PROSEMILL_PRECISION="fp32") as service:
        answer = compare(service.url, workspace.folder / "models/trained")
        facts = requests.get(f"{service.url}/v1/models", timeout=LIMIT).json()["data"][0]
    assert answer["model_version"] == facts["version"] == 1
    assert facts["git_commit"] == workspace.git("rev-parse", "HEAD")


def compare(url: str, model: Path) -> dict[str, Any]:
    """Ask a service for a text, at once and as a stream, and for a score: both are what the model's folder gives here."""
    with Writer.open(model, precision="fp32", num_rows=1) as writer:
        expected = "".join(writer.answer(PROMPT, Settings(max_new_tokens=NUM_NEW_TOKENS, **DRAWN)))
        framed, nll = writer.frame(TEXT), queue.SimpleQueue[Any]()
        writer.engine.score(framed.given, framed.tokens, framed.labels, nll.put)
        expected_nll = nll.get(timeout=LIMIT)
    assert len(set(expected)) > 1

    body = {"prompt": PROMPT, "max_new_tokens": NUM_NEW_TOKENS, **DRAWN}
    answer: dict[str, Any] = requests.post(f"{url}/generate", json=body, timeout=LIMIT).json()
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="-")
    stream = client.completions.create(model="prosemill", prompt=PROMPT, max_tokens=NUM_NEW_TOKENS, stream=True, **DRAWN)
    assert answer["generated_text"] == "".join(choice.text for event in stream for choice in event.choices) == expected

    score = requests.post(f"{url}/score", json={"text": TEXT}, timeout=LIMIT).json()
    assert score["log_likelihood"] == pytest.approx(-float(expected_nll))
    return answer
