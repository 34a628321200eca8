"""The benchmark of decoding scores texts as the evaluation does."""

import math
from pathlib import Path

import pytest
import torch

from benchmarks.decoding import nll_by_engine, report
from prosemill.evaluation.scoring import score_documents
from prosemill.families import family_of_model
from prosemill.generation.writer import Writer
from prosemill.pretrained import load_model, load_tokenizer


def test_the_engines_bits_per_byte_are_the_evaluations(tiny_model: Path, prose: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer, texts = load_model(tiny_model), load_tokenizer(tiny_model), [text[:300] for text in prose[:4]]
    with Writer.open(tiny_model, precision="fp32", num_rows=1) as writer:
        framed = [writer.frame(text) for text in texts]
    found = nll_by_engine(family_of_model(model).layout(model), "fp32", tokenizer, framed)
    documents = [tokenizer.encode(text) for text in texts]
    context, device = max(map(len, documents)), torch.device("cpu")
    expected = score_documents(
        model, documents, end_of_text_id=0, context=context, stride=context, batch_size=1, device=device, arithmetic="fp32"
    )
    assert found == pytest.approx(expected.nll_sum, rel=1e-5)
    num_bytes = sum(len(text.encode()) for text in texts)
    report({"engine, int8": {1: 10.0, 8: 20.0, 32: 30.0}}, {"engine, fp32": found}, num_bytes)
    told = capsys.readouterr().out
    assert "| engine, int8 | 10 (1.0 ×) | 20 (1.0 ×) | 30 (1.0 ×) | – |" in told
    assert f"| engine, fp32 | – | – | – | {expected.nll_sum / math.log(2) / num_bytes:.4f} |" in told
