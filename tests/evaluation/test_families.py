"""Every family is evaluated through the same door, and T5's numbers are what a plain loop over its windows gives."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from prosemill.evaluation import evaluate_models
from prosemill.families import families
from prosemill.params import Evaluate
from tests.evaluation.corpus import SOURCE, write_corpus, write_tokens
from tests.models import write_model

CONTEXT = 16
SECTION = Evaluate(
    context=CONTEXT,
    num_prompts=3,
    prompt_words=5,
    continuation_words=5,
    num_samples=1,
    num_shown=1,
    bootstrap_resamples=10,
    latency_prompt_tokens=6,
    latency_new_tokens=3,
    latency_repeats=1,
    precision="fp32",
)


def folders_of(family: str, root: Path, tiny_model: Path, prose: list[str]) -> dict[str, Path]:
    """A corpus of short texts, tokens to count, and a model of the family drawn twice."""
    texts = [*(" ".join(text.split()[:30]) for text in prose[:4]), "Kurz."]
    folders = {"corpus": write_corpus(root / "corpus", {"test": [texts]}), "tokens": write_tokens(root / "tokens", tiny_model, prose[9:])}
    for seed, name in enumerate(("base", "trained")):
        folders[name] = root / name
        write_model(root / name, family, tiny_model, context_size=64, seed=seed)
        (root / name / "SOURCE.json").write_text(json.dumps(SOURCE))
    return folders


@pytest.mark.parametrize("family", list(families()))
def test_every_family_is_evaluated(family: str, tmp_path: Path, tiny_model: Path, prose: list[str]) -> None:
    evaluation = evaluate_models(SECTION, **folders_of(family, tmp_path, tiny_model, prose))
    metrics = evaluation.metrics
    assert metrics["protocol"]["direction"] == families()[family].direction
    assert metrics["base"]["num_tokens"] == metrics["trained"]["num_tokens"] == metrics["trigram"]["num_tokens"]
    assert metrics["base"]["num_bytes"] == metrics["trigram"]["num_bytes"] > 0
    assert metrics["trigram"]["bits_per_byte"] < metrics["base"]["bits_per_byte"], "random weights know less than counts"
    assert metrics["base"]["bits_per_byte"] != metrics["trained"]["bits_per_byte"]
    assert metrics["base"]["time_per_token_ms"] > 0
    assert len(evaluation.samples) == 3


def test_t5_is_scored_on_the_second_halves_alone(tmp_path: Path, tiny_model: Path, prose: list[str]) -> None:
    folders = folders_of("t5", tmp_path, tiny_model, prose)
    metrics = evaluate_models(SECTION, **folders).metrics
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_model), AutoModelForSeq2SeqLM.from_pretrained(folders["trained"]).eval()
    texts = [*(" ".join(text.split()[:30]) for text in prose[:4]), "Kurz."]
    nll, num_bytes = 0.0, 0
    for text in texts:
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
        for begin in range(0, len(ids), CONTEXT):
            piece = ids[begin : begin + CONTEXT]
            half = len(piece) // 2
            with torch.no_grad():
                loss = model(input_ids=torch.tensor([[*piece[:half], 0]]), labels=torch.tensor([piece[half:]])).loss
            nll += float(loss) * len(piece[half:])
            first = offsets[begin + half - 1][1] if begin + half else 0
            num_bytes += len(text[first : offsets[begin + len(piece) - 1][1]].encode())
    assert metrics["trained"]["num_bytes"] == num_bytes
    assert metrics["trained"]["bits_per_byte"] == pytest.approx(nll / math.log(2) / num_bytes, rel=1e-5)
