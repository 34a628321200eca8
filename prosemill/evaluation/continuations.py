"""Passages continued by a model: greedily, and by samples that can be drawn again.

    continued = continue_passages(model, tokenizer, passages, prompts, options)
    continued.greedy[0], continued.samples[0][0]

Tokens are made by transformers' `generate`. How the prompt is fed is the family's own (`Family.prompt`).
The random numbers of a sample come from a generator of its own, whose seed depends on the evaluation's seed, the document's id and the
sample's number alone: which rows share a batch changes no draw, only (in bf16) the rounding of the probabilities drawn from.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerFast

from prosemill.digests import stable_share
from prosemill.evaluation.documents import Passage
from prosemill.evaluation.words import first_words
from prosemill.families import family_of_model
from prosemill.pretrained import added_text, stop_tokens

NUCLEUS_TOKENS = 1024  # the nucleus is sought among so many tokens first: sorting a whole vocabulary costs as much as a layer


@dataclass(frozen=True, kw_only=True)
class Options:
    """How passages are continued."""

    end_of_text_id: int
    """Ends a continuation; the family feeds it with the prompt."""
    num_words: int
    """A continuation is cut to so many whitespace-separated words."""
    num_samples: int
    """Samples of each passage, beside the greedy continuation."""
    temperature: float
    """Divides the logits before sampling."""
    top_p: float
    """Samples are drawn from the smallest set of most likely tokens that holds this probability (Holtzman et al. 2020)."""
    seed: int
    """Of the samples."""
    batch_size: int
    """Passages continued together."""

    @property
    def num_new_tokens(self) -> int:
        """Tokens that are generated at most: room for `num_words` words of 1.5 tokens."""
        return math.ceil(1.5 * self.num_words)


@dataclass(frozen=True)
class Continuations:
    """Texts by passage, in the passages' order: greedy, and one list for each sample number."""

    greedy: list[str]
    samples: list[list[str]]


@dataclass(frozen=True)
class _Job:
    """A passage's prompt as token ids, without end-of-text, to be continued greedily (`sample` is None) or by one of its samples."""

    passage: int
    document_id: str
    tokens: tuple[int, ...]
    sample: int | None


class NucleusDraw(LogitsProcessor):
    """Leaves of each row's logits the one token that was drawn from its nucleus, so that greedy decoding takes it.

    Args:
        uniform: [B, steps], a number in [0, 1) for each row and each step: the share of the nucleus below the drawn token.
        prompt_width: Tokens in a row before the first step.
        temperature: Divides the logits.
        top_p: Probability of the nucleus.
    """

    def __init__(self, uniform: torch.Tensor, *, prompt_width: int, temperature: float, top_p: float) -> None:
        self._uniform, self._prompt_width, self._temperature, self._top_p = uniform, prompt_width, temperature, top_p

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Args are [B, T] and [B, V]; returns [B, V], minus infinity but for one token a row."""
        step = input_ids.shape[1] - self._prompt_width
        probability = torch.softmax(scores.float() / self._temperature, dim=-1)
        token = draw_from_nucleus(probability, self._uniform[:, step : step + 1].to(scores.device), self._top_p)
        return torch.full_like(scores, -math.inf).scatter_(1, token, 0.0)


def draw_from_nucleus(probability: torch.Tensor, uniform: torch.Tensor, top_p: float) -> torch.Tensor:
    """Token ids [B, 1] drawn from probabilities [B, V] by uniform numbers [B, 1], inverting each nucleus's cumulative probability.

    Tokens stand in order of their probability, the most likely first. A row whose nucleus does not lie among its `NUCLEUS_TOKENS` most
    likely tokens is sorted whole, whatever the other rows need.
    """
    num_tokens = min(NUCLEUS_TOKENS, probability.shape[1])
    top, ids = probability.topk(num_tokens)
    token = ids.gather(1, _index_in_nucleus(top, uniform, top_p))
    wide = top.sum(dim=1) < top_p
    if num_tokens < probability.shape[1] and bool(wide.any()):
        ordered, ids = probability[wide].sort(dim=1, descending=True, stable=True)
        token[wide] = ids.gather(1, _index_in_nucleus(ordered, uniform[wide], top_p))
    return token


def continue_passages(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    passages: Sequence[Passage],
    prompts: Sequence[Sequence[int]],
    options: Options,
    *,
    advance: Callable[[int], object] = int,
) -> Continuations:
    """Continue every passage greedily and by samples.

    Args:
        model: A model in evaluation mode.
        tokenizer: The model's tokenizer; its end of sequence ends a continuation too.
        passages: What is continued.
        prompts: Token ids of the passages' prompts, without end-of-text.
        options: How.
        advance: Called with the number of continuations just made.
    """
    numbers: list[int | None] = [None, *range(options.num_samples)]
    texts: dict[int | None, list[str]] = {number: [""] * len(passages) for number in numbers}
    for kind in (numbers[:1], numbers[1:]):
        jobs = [
            _Job(index, passage.document_id, tuple(prompts[index]), number) for number in kind for index, passage in enumerate(passages)
        ]
        jobs.sort(key=lambda job: -len(job.tokens))  # stable: rows of a batch are of like length
        for start in range(0, len(jobs), options.batch_size):
            batch = jobs[start : start + options.batch_size]
            for job, new_tokens in zip(batch, _generate(model, tokenizer, batch, options), strict=True):
                texts[job.sample][job.passage] = first_words(added_text(tokenizer, job.tokens, new_tokens), options.num_words).strip()
            advance(len(batch))
    return Continuations(texts[None], [texts[number] for number in range(options.num_samples)])


def _index_in_nucleus(descending: torch.Tensor, uniform: torch.Tensor, top_p: float) -> torch.Tensor:
    """Position [B, 1] in rows of descending probabilities at which the uniform number falls within the nucleus."""
    probability = descending.double()
    below = probability.cumsum(dim=1) - probability
    nucleus = probability * (below < top_p)
    reached = nucleus.cumsum(dim=1)
    index = (reached <= uniform * reached[:, -1:]).sum(dim=1, keepdim=True)
    return index.clamp(max=descending.shape[1] - 1)


def _generate(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, batch: Sequence[_Job], options: Options) -> list[list[int]]:
    """New tokens of each row, without the token that ended it."""
    family = family_of_model(model)
    inputs = family.prompt([job.tokens for job in batch], options.end_of_text_id)
    num_given = family.num_given(inputs)
    stops = stop_tokens(tokenizer, options.end_of_text_id)
    processors = LogitsProcessorList()
    if batch[0].sample is not None:
        uniform = torch.stack([_uniform_numbers(job, options) for job in batch])
        processors.append(NucleusDraw(uniform, prompt_width=num_given, temperature=options.temperature, top_p=options.top_p))
    generate: Any = model.generate
    with torch.inference_mode():
        output = generate(
            **{name: value.to(model.device) for name, value in inputs.items()},
            generation_config=plain_generation(options.num_new_tokens, stops),
            logits_processor=processors,
        )
    return [_before_stop(row, stops) for row in output[:, num_given:].tolist()]


def plain_generation(num_new_tokens: int, stops: Sequence[int]) -> GenerationConfig:
    """Greedy decoding and nothing else: no setting of the model folder's generation_config.json reaches the protocol."""
    return GenerationConfig(max_new_tokens=num_new_tokens, do_sample=False, use_cache=True, eos_token_id=list(stops), pad_token_id=stops[0])


def _uniform_numbers(job: _Job, options: Options) -> torch.Tensor:
    """A row's numbers in [0, 1), one for each step, from a generator of its own."""
    seed = int(stable_share(f"{job.document_id}\0{job.sample}", salt=f"sample {options.seed}") * 2**53)
    return torch.rand(options.num_new_tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _before_stop(tokens: list[int], stops: Sequence[int]) -> list[int]:
    end = next((index for index, token in enumerate(tokens) if token in stops), len(tokens))
    return tokens[:end]
