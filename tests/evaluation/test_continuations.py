"""Continuations depend on the model, the prompt and the seed, not on their neighbours; samples follow the nucleus."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerFast, TemperatureLogitsWarper, TopPLogitsWarper

from prosemill.evaluation import continuations as room
from prosemill.evaluation.continuations import Continuations, Options, continue_passages, draw_from_nucleus
from prosemill.evaluation.documents import Passage
from prosemill.evaluation.text import encode
from prosemill.pretrained import load_model, load_tokenizer

OPTIONS = Options(end_of_text_id=0, num_words=8, num_samples=2, temperature=1.0, top_p=0.9, seed=0, batch_size=4)
PROMPTS = ["The value of", "Python", "An expression list containing at least one comma yields", "In the", "If a class defines"]
PASSAGES = [Passage(f"document {index}", prompt, "a reference") for index, prompt in enumerate(PROMPTS)]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> PreTrainedModel:
    return load_model(tiny_model)


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> PreTrainedTokenizerFast:
    return load_tokenizer(tiny_model)


def prompts_of(tokenizer: PreTrainedTokenizerFast, passages: list[Passage]) -> list[list[int]]:
    return [encoding.ids for encoding in encode(tokenizer, [passage.prompt for passage in passages])]


def continued(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, options: Options = OPTIONS, passages: list[Passage] = PASSAGES
) -> Continuations:
    return continue_passages(model, tokenizer, passages, prompts_of(tokenizer, passages), options)


def test_greedy_continuations_equal_a_loop_without_cache_padding_or_batch(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    for passage, text in zip(PASSAGES, continued(model, tokenizer).greedy, strict=True):
        tokens = [0, *prompts_of(tokenizer, [passage])[0]]
        new: list[int] = []
        while len(new) < OPTIONS.num_new_tokens:
            with torch.no_grad():
                token = int(model(torch.tensor([tokens + new])).logits[0, -1].argmax())
            if token == 0:
                break
            new.append(token)
        expected = str(tokenizer.decode(new)).split()[: OPTIONS.num_words]
        assert text.split() == expected
        assert expected


def test_batch_size_and_order_change_nothing(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    whole = continued(model, tokenizer)
    assert continued(model, tokenizer, replace(OPTIONS, batch_size=1)) == whole
    assert continued(model, tokenizer, replace(OPTIONS, batch_size=64)) == whole
    backwards = continued(model, tokenizer, passages=PASSAGES[::-1])
    assert backwards == Continuations(whole.greedy[::-1], [texts[::-1] for texts in whole.samples])


def test_samples_change_with_seed_document_and_number(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    whole = continued(model, tokenizer)
    assert len({tuple(texts) for texts in [whole.greedy, *whole.samples]}) == 3
    other_seed = continued(model, tokenizer, replace(OPTIONS, seed=1))
    assert other_seed.greedy == whole.greedy
    assert all(text != other for text, other in zip(whole.samples[0], other_seed.samples[0], strict=True))
    renamed = continued(model, tokenizer, passages=[replace(passage, document_id="other") for passage in PASSAGES])
    assert renamed.greedy == whole.greedy
    assert renamed.samples != whole.samples


def test_more_samples_leave_the_first_ones_as_they_are(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    assert continued(model, tokenizer, replace(OPTIONS, num_samples=1)).samples[0] == continued(model, tokenizer).samples[0]


def test_a_tiny_nucleus_is_greedy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    whole = continued(model, tokenizer, replace(OPTIONS, top_p=1e-6))
    assert whole.samples == [whole.greedy, whole.greedy]


def test_a_low_temperature_is_greedy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    whole = continued(model, tokenizer, replace(OPTIONS, top_p=1.0, temperature=1e-5))
    assert whole.samples == [whole.greedy, whole.greedy]


def test_the_prompt_is_no_part_of_a_continuation(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    marked = [Passage("marked", "zebra zebra zebra", "a reference")]
    texts = continued(model, tokenizer, passages=marked)
    assert all("zebra" not in text for text in [*texts.greedy, *texts.samples[0], *texts.samples[1]])


def test_end_of_text_ends_a_continuation(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    class AlwaysEnds(torch.nn.Module):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.one_hot(torch.zeros(hidden.shape[:-1], dtype=torch.long), 1024).float() * 100

    head = model.get_output_embeddings()
    model.lm_head = AlwaysEnds()
    try:
        assert continued(model, tokenizer) == Continuations([""] * 5, [[""] * 5, [""] * 5])
    finally:
        model.lm_head = head


def test_the_first_stop_token_of_any_kind_ends_a_row() -> None:
    assert room._before_stop([5, 6, 2, 0, 0], [0, 2]) == [5, 6]
    assert room._before_stop([5, 6], [0, 2]) == [5, 6]


@pytest.mark.parametrize(("nucleus_tokens", "top_p"), [(1024, 0.8), (4, 0.8), (2, 0.95), (8, 1.0)])
def test_draws_follow_the_distribution_of_transformers_top_p(monkeypatch: pytest.MonkeyPatch, nucleus_tokens: int, top_p: float) -> None:
    monkeypatch.setattr(room, "NUCLEUS_TOKENS", nucleus_tokens)
    logits = torch.tensor([[2.0, 0.5, -1.0, 1.5, 0.0, -2.0, 1.0, -0.5]])
    warp: Any = LogitsProcessorList([TemperatureLogitsWarper(0.7), TopPLogitsWarper(top_p)])
    expected = torch.softmax(warp(torch.zeros(1, 1, dtype=torch.long), logits), dim=-1)[0]
    num_draws = 20_000
    uniform = (torch.arange(num_draws, dtype=torch.float64)[:, None] + 0.5) / num_draws
    drawn = draw_from_nucleus(torch.softmax(logits / 0.7, dim=-1).expand(num_draws, -1), uniform, top_p)
    shares = torch.bincount(drawn[:, 0], minlength=8) / num_draws
    assert torch.allclose(shares, expected, atol=2e-4)
    assert ((shares > 0) == (expected > 0)).all()


def test_a_rows_draw_does_not_depend_on_rows_with_a_wider_nucleus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "NUCLEUS_TOKENS", 2)
    rows = torch.tensor([[0.9, 0.06, 0.03, 0.01], [0.25, 0.25, 0.25, 0.25], [0.1, 0.2, 0.3, 0.4]])
    uniform = torch.tensor([[0.5], [0.9], [0.99]], dtype=torch.float64)
    together = draw_from_nucleus(rows, uniform, 0.9)
    alone = torch.cat([draw_from_nucleus(row[None], number[None], 0.9) for row, number in zip(rows, uniform, strict=True)])
    assert together.tolist() == alone.tolist() == [[0], [3], [1]]
