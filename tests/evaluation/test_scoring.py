"""Scores are exact: equal to a hand value, to a loop over single tokens, and independent of batches and padding."""

import math
from itertools import chain
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from prosemill.evaluation import scoring
from prosemill.evaluation.documents import Document
from prosemill.evaluation.protocol import text_metrics
from prosemill.evaluation.scoring import Score, score_at_strides, score_documents
from prosemill.evaluation.text import Encoded, size_of
from prosemill.families import families
from prosemill.pretrained import load_model

CPU = torch.device("cpu")
END = 0


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> PreTrainedModel:
    return load_model(tiny_model)


@pytest.fixture(scope="module")
def documents() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, 1024, (length,), generator=generator).tolist() for length in (1, 2, 7, 16, 17, 33, 40, 0, 21)]


def score(model: PreTrainedModel, documents: list[list[int]], *, context: int = 16, stride: int = 16, batch_size: int = 4) -> Score:
    return score_documents(
        model,
        documents,
        end_of_text_id=END,
        context=context,
        stride=stride,
        batch_size=batch_size,
        device=CPU,
        arithmetic="fp32",
    )


def naive_nll(model: PreTrainedModel, tokens: list[int], context: int, stride: int) -> float:
    """Each token on its own: predicted from the tokens that its window holds before it."""
    stream, total = [END, *tokens], 0.0
    for position in range(len(tokens)):
        # The first window reaches `context` tokens far, each later one `stride` further: find the first that holds this token.
        begin = 0
        while position >= begin + context:
            begin += stride
        with torch.no_grad():
            logits = model(torch.tensor([stream[begin : position + 1]])).logits[0, -1].double()
        total -= torch.log_softmax(logits, dim=0)[tokens[position]].item()
    return total


def test_a_uniform_model_needs_log2_of_the_vocabulary_per_token() -> None:
    uniform = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2))
    torch.nn.init.zeros_(uniform.lm_head.weight)
    documents = [Document("a", "ab cd é"), Document("b", "xyz")]
    scored = score(uniform.eval(), [[1, 2, 3, 4], [5, 6]])
    encoded = [Encoded([1, 2, 3, 4], [2, 3, 5, 7]), Encoded([5, 6], [1, 3])]
    size = size_of(families()["llama"], documents, encoded, context=16, stride=16)
    row = text_metrics(scored, scored, size, size)
    assert row["num_tokens"] == 6
    assert row["num_bytes"] == 8 + 3
    assert row["bits_per_byte"] == pytest.approx(math.log2(64) * 6 / 11, rel=1e-6)
    assert row["token_perplexity"] == pytest.approx(64, rel=1e-5)
    assert row["word_perplexity"] == pytest.approx(64 ** (6 / 4), rel=1e-5)


@pytest.mark.parametrize(("context", "stride"), [(64, 64), (16, 16), (16, 8), (16, 5), (9, 4), (8, 1)])
def test_scores_equal_a_loop_over_single_tokens(model: PreTrainedModel, documents: list[list[int]], context: int, stride: int) -> None:
    scored = score(model, documents, context=context, stride=stride)
    expected = math.fsum(naive_nll(model, tokens, context, stride) for tokens in documents)
    assert scored.num_tokens == sum(map(len, documents))
    assert scored.nll_sum == pytest.approx(expected, rel=1e-5)


def test_a_smaller_stride_sees_more_and_so_differs(model: PreTrainedModel, documents: list[list[int]]) -> None:
    assert score(model, documents, stride=16).nll_sum != score(model, documents, stride=8).nll_sum


def test_strides_that_share_windows_score_as_if_alone(model: PreTrainedModel, documents: list[list[int]]) -> None:
    both = score_at_strides(model, documents, end_of_text_id=END, context=16, strides=[16, 8], batch_size=3, device=CPU, arithmetic="fp32")
    assert both[16].nll_sum == pytest.approx(score(model, documents, stride=16).nll_sum, rel=1e-6)
    assert both[8].nll_sum == pytest.approx(score(model, documents, stride=8).nll_sum, rel=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_batches_and_padding_change_nothing(model: PreTrainedModel, documents: list[list[int]], batch_size: int) -> None:
    alone = math.fsum(score(model, [tokens], stride=8, batch_size=1).nll_sum for tokens in documents)
    assert score(model, documents, stride=8, batch_size=batch_size).nll_sum == pytest.approx(alone, rel=1e-6)


def test_order_of_documents_changes_nothing(model: PreTrainedModel, documents: list[list[int]]) -> None:
    assert score(model, documents[::-1]).nll_sum == pytest.approx(score(model, documents).nll_sum, rel=1e-6)


def test_chunks_of_positions_change_nothing(model: PreTrainedModel, documents: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = score(model, documents, context=64).nll_sum
    monkeypatch.setattr(scoring, "POSITIONS_AT_ONCE", 3)
    monkeypatch.setattr(scoring, "TOKENS_PER_BATCH", 40)
    assert score(model, documents, context=64).nll_sum == pytest.approx(whole, rel=1e-6)


def test_bf16_is_close(model: PreTrainedModel, documents: list[list[int]]) -> None:
    options = {"end_of_text_id": END, "context": 16, "stride": 8, "batch_size": 4}
    rounded = score_documents(model, documents, device=CPU, arithmetic="bf16", **options)
    assert rounded.nll_sum == pytest.approx(score(model, documents, stride=8).nll_sum, rel=5e-3)


def test_no_document_is_no_token(model: PreTrainedModel) -> None:
    assert score(model, [[]]) == Score(0.0, 0)


def test_only_the_text_that_is_scored_is_counted() -> None:
    text = "né  à la carte"
    encoded = Encoded(list(range(7)), [1, 2, 4, 5, 8, 10, 14])  # n, é, ␣␣ and so on: tokens end where no word does
    t5 = families()["t5"]
    # One window of seven tokens, whose first three are the encoder's.
    assert size_of(t5, [Document("a", text)], [encoded], context=8, stride=8) == (len(text[4:].encode()), len(text[4:].split()))
    # Windows at 0, 2 and 4 of four tokens: all but the first two tokens are scored.
    assert size_of(t5, [Document("a", text)], [encoded], context=4, stride=2) == (len(text[2:].encode()), len(text[2:].split()))
    # Windows at 0 and 4: tokens 2, 3 and 5, 6 are scored.
    parts = [text[2:5], text[8:]]
    expected = (len("".join(parts).encode()), sum(len(part.split()) for part in parts))
    assert size_of(t5, [Document("a", text)], [encoded], context=4, stride=4) == expected
    tokenized = Document("a", text, original=" n é a b c d e f g")
    assert size_of(families()["llama"], [tokenized], [encoded], context=4, stride=2) == (len(text.encode()), 9)


@given(num_tokens=st.integers(0, 100), context=st.integers(1, 20), data=st.data())
def test_windows_score_each_token_once_with_enough_left_context(num_tokens: int, context: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, context))
    windows = list(families()["llama"].windows(0, num_tokens, context, stride))
    assert list(chain.from_iterable(range(window.first_new, window.end) for window in windows)) == list(range(num_tokens))
    assert all(0 < window.length <= context for window in windows)
    assert all(window.first_new - window.begin == context - stride for window in windows[1:])
