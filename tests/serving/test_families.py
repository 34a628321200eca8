"""The real service, `bentoml serve` beside a real registry, of a champion of each family."""

import queue
from pathlib import Path
from typing import Any

import openai
import pytest
import requests

from prosemill.families import families
from prosemill.generation.sampling import Settings
from prosemill.generation.writer import Writer
from tests.serving.real import make_champion, real_service

PROMPT = "The history of"
TEXT = "The history of the city begins, as it ends, with a river."
DRAWN: dict[str, Any] = {"temperature": 2.0, "top_p": 1.0, "seed": 5}
NUM_NEW_TOKENS = 24


@pytest.mark.parametrize("family", sorted(families()))
def test_it_writes_and_scores_as_the_model_does(
    family: str, tmp_path: Path, tiny_model: Path, prose: list[str], empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = make_champion(tmp_path / "workspace", tiny_model, [text[:400] for text in prose[:6]], empty_store, family=family)
    with Writer.open(workspace.folder / "models/trained", precision="fp32", num_rows=1) as writer:
        expected = "".join(writer.answer(PROMPT, Settings(max_new_tokens=NUM_NEW_TOKENS, **DRAWN)))
        framed, nll = writer.frame(TEXT), queue.SimpleQueue[Any]()
        writer.engine.score(framed.given, framed.tokens, framed.labels, nll.put)
        expected_nll = nll.get(timeout=60)
    assert len(set(expected)) > 1
    with real_service(workspace.folder, tmp_path / "log", PROSEMILL_PRECISION="fp32") as service:
        body = {"prompt": PROMPT, "max_new_tokens": NUM_NEW_TOKENS, **DRAWN}
        answer = requests.post(f"{service.url}/generate", json=body, timeout=60).json()
        client = openai.OpenAI(base_url=f"{service.url}/v1", api_key="-")
        stream = client.completions.create(model="prosemill", prompt=PROMPT, max_tokens=NUM_NEW_TOKENS, stream=True, **DRAWN)
        streamed = "".join(choice.text for event in stream for choice in event.choices)
        score = requests.post(f"{service.url}/score", json={"text": TEXT}, timeout=60).json()
        facts = requests.get(f"{service.url}/v1/models", timeout=60).json()["data"][0]
    assert answer["generated_text"] == streamed == expected
    assert answer["model_version"] == facts["version"] == 1
    assert facts["git_commit"] == workspace.git("rev-parse", "HEAD")
    assert score["log_likelihood"] == pytest.approx(-float(expected_nll))
