"""What needs the models: scores, continuations and latency of each, in one pass over the folders."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from prosemill.console import progress
from prosemill.errors import ProsemillError
from prosemill.evaluation.continuations import Continuations, Options, continue_passages
from prosemill.evaluation.documents import Document, Passage, read_split
from prosemill.evaluation.latency import measure_latency
from prosemill.evaluation.precisions import measure_precisions
from prosemill.evaluation.scoring import Score, num_windows, score_at_strides, scored_ranges
from prosemill.evaluation.text import EvaluatedText, Size, read_text, strides_of
from prosemill.evaluation.trigram import Trigram
from prosemill.families import Family, family_of, family_of_model
from prosemill.generation.precision import Precision
from prosemill.params import Evaluate
from prosemill.precision import DTYPES, Arithmetic, choose_arithmetic, choose_device
from prosemill.pretrained import load_model
from prosemill.tokens import read_tokens

TRIGRAM = "trigram"
SERVED = "trained"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the models did, by their names."""

    direction: str
    """What the models predict from what."""
    scoring_note: str
    """How they were scored, in words."""
    scores: dict[str, Score]
    """At a stride of the whole context; `trigram` is the baseline's, where there is one."""
    half_stride_scores: dict[str, Score]
    """At a stride of half the context."""
    text: Size
    """Of the text that `scores` count."""
    half_stride_text: Size
    """Of the text that `half_stride_scores` count."""
    continuations: dict[str, Continuations]
    latency: dict[str, dict[str, float]]
    serving: dict[Precision, Score]
    """Of the trained model, by the precision that a server holds its weights in; empty where none was asked for."""
    machine: dict[str, str | int]
    """Arithmetic, device and threads, for the protocol."""


def measure_models(
    section: Evaluate, documents: Sequence[Document], passages: Sequence[Passage], folders: Mapping[str, Path], tokens: Path
) -> Measured:
    """Score, continue and time the models of the folders, all of which must have the same family and tokenizer.

    Each model is scored with fp32 weights and the matrix products of `section.precision`; then its weights are turned into that type for
    generation, as a server would, so that at most one model at a time is held in fp32. The trigram is counted on `tokens`.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    device = choose_device()
    arithmetic = choose_arithmetic(section.precision, device)
    family = family_of(next(iter(folders.values())))
    tokenizer, end_of_text, text = read_text(section, documents, passages, folders)
    options = _options(section, end_of_text)
    scores: dict[str, dict[int, Score]] = {}
    continued: dict[str, Continuations] = {}
    models: dict[str, PreTrainedModel] = {}
    serving: dict[Precision, Score] = {}
    for name, folder in folders.items():
        model: Any = load_model(folder)
        _refuse_too_long(section, options, text, model, folder)
        # Nothing of the folder's own settings, but where an encoder's decoder starts.
        model.generation_config = GenerationConfig(decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None))
        if name == SERVED:
            serving = _score_precisions(model, text, section, end_of_text)
        model = model.to(device)
        scores[name] = _score(name, model, text, section, end_of_text, arithmetic)
        models[name] = model.to(DTYPES[arithmetic])
        with progress(f"continue {name}", len(passages) * (1 + section.num_samples), "continuations") as bar:
            continued[name] = continue_passages(model, tokenizer, passages, text.prompts, options, advance=bar.advance)
    latency = _measure_latency(models, text, section, end_of_text)
    if section.baseline_tokens is not None:
        stream = read_tokens(tokens, "train", section.baseline_tokens)
        trigram = Trigram.count(stream, max(tokenizer.get_vocab().values()) + 1, end_of_text)
        scores[TRIGRAM] = _score_trigram(section, family, text, trigram)
    half = section.context // 2
    return Measured(
        direction=family.direction,
        scoring_note=family.scoring_note(section.context),
        scores={name: by_stride[section.context] for name, by_stride in scores.items()},
        half_stride_scores={name: by_stride[half] for name, by_stride in scores.items()},
        text=text.sizes[section.context],
        half_stride_text=text.sizes[half],
        continuations=continued,
        latency=latency,
        serving=serving,
        machine=_machine(tokenizer, end_of_text, options, arithmetic, device),
    )


def measure_bits_per_byte(section: Evaluate, *, corpus: Path, folder: Path, digest: str) -> float:
    """Bits per byte of one model on the documents of this digest, by the protocol of `measure_models`.

    Raises:
        ProsemillError: the corpus is missing, broken or another one, or the windows are longer than what the model sees.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    documents, data = read_split(corpus, section.split, section.max_documents, detokenized=section.detokenize)
    if data["digest"] != digest:
        raise ProsemillError(
            f"the {section.split} split of {corpus} has the digest {data['digest'][:12]}, and {digest[:12]} is needed: "
            "check out that commit and run `dvc checkout`"
        )
    _, end_of_text, text = read_text(section, documents, [], {"model": folder})
    device = choose_device()
    model: Any = load_model(folder)
    limit = family_of_model(model).context_size(model.config.to_dict())
    if limit is not None and section.context > limit:
        raise ProsemillError(f"`evaluate.context` is {section.context}, and the model sees {limit} tokens at most: evaluate with less")
    arithmetic = choose_arithmetic(section.precision, device)
    score = _score("the model", model.to(device), text, section, end_of_text, arithmetic)[section.context]
    return score.nll_sum / (math.log(2) * text.sizes[section.context].num_bytes)


def _machine(
    tokenizer: PreTrainedTokenizerFast, end_of_text: int, options: Options, arithmetic: Arithmetic, device: torch.device
) -> dict[str, str | int]:
    return {
        "end_of_text": str(tokenizer.convert_ids_to_tokens(end_of_text)),
        "max_new_tokens": options.num_new_tokens,
        "scoring_arithmetic": arithmetic,
        "generation_dtype": arithmetic,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
    }


def _score(
    name: str, model: PreTrainedModel, text: EvaluatedText, section: Evaluate, end_of_text: int, arithmetic: Arithmetic
) -> dict[int, Score]:
    """The model's scores by stride: the whole context, and half of it."""
    strides = strides_of(section)
    count = num_windows(family_of_model(model), text.documents, section.context, strides)
    with progress(f"score {name}", count, "windows") as bar:
        return score_at_strides(
            model,
            text.documents,
            end_of_text_id=end_of_text,
            context=section.context,
            strides=strides,
            batch_size=section.batch_size,
            device=model.device,
            arithmetic=arithmetic,
            advance=bar.advance,
        )


def _score_precisions(model: PreTrainedModel, text: EvaluatedText, section: Evaluate, end_of_text: int) -> dict[Precision, Score]:
    """The scores of the text's beginning by the precision that a server holds the weights in; empty if none are asked for."""
    if not section.serving_tokens:
        return {}
    num_tokens = min(section.serving_tokens, sum(map(len, text.documents)))
    with progress("score precisions", num_tokens * len(get_args(Precision)), "tokens") as bar:
        return measure_precisions(
            model, text.documents, end_of_text_id=end_of_text, context=section.context, num_tokens=num_tokens, advance=bar.advance
        )


def _measure_latency(
    models: Mapping[str, PreTrainedModel], text: EvaluatedText, section: Evaluate, end_of_text: int
) -> dict[str, dict[str, float]]:
    return measure_latency(
        models,
        prompt=text.latency_prompt,
        num_new_tokens=section.latency_new_tokens,
        repeats=section.latency_repeats,
        end_of_text_id=end_of_text,
    )


def _score_trigram(section: Evaluate, family: Family, text: EvaluatedText, trigram: Trigram) -> dict[int, Score]:
    """The baseline's scores by stride, over the tokens that the models' scores count."""
    by_document = [trigram.nll(document) for document in text.documents]
    scores = {}
    for stride in strides_of(section):
        parts = [nll[first:end] for nll in by_document for first, end in scored_ranges(family, len(nll), section.context, stride)]
        scores[stride] = Score(math.fsum(float(part.sum()) for part in parts), sum(map(len, parts)))
    return scores


def _options(section: Evaluate, end_of_text: int) -> Options:
    return Options(
        end_of_text_id=end_of_text,
        num_words=section.continuation_words,
        num_samples=section.num_samples,
        temperature=section.temperature,
        top_p=section.top_p,
        seed=section.seed,
        batch_size=section.batch_size,
    )


def _refuse_too_long(section: Evaluate, options: Options, text: EvaluatedText, model: PreTrainedModel, folder: Path) -> None:
    """Raise `ProsemillError` if a setting needs more positions than the model has."""
    limit = family_of_model(model).context_size(model.config.to_dict())
    if limit is None:
        return
    longest_prompt = 1 + max(map(len, text.prompts))
    needs = {
        "evaluate.context": section.context,
        "evaluate.prompt_words": longest_prompt + options.num_new_tokens,
        "evaluate.latency_prompt_tokens": section.latency_prompt_tokens + section.latency_new_tokens,
    }
    for key, num_tokens in needs.items():
        if num_tokens > limit:
            raise ProsemillError(f"`{key}`: {num_tokens} tokens are needed but {folder} sees {limit} at most: lower it in params.yaml")
