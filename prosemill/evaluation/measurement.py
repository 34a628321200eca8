"""What needs the models: scores, continuations and latency of each, in one pass over the folders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from prosemill.console import progress
from prosemill.errors import ProsemillError
from prosemill.evaluation.continuations import Continuations, Options, continue_passages
from prosemill.evaluation.documents import Document, Passage
from prosemill.evaluation.latency import measure_latency
from prosemill.evaluation.scoring import Score, num_windows, score_at_strides
from prosemill.params import Evaluate
from prosemill.precision import DTYPES, Arithmetic, choose_arithmetic, choose_device
from prosemill.pretrained import end_of_text_id, load_model, load_tokenizer

Tokens = list[int]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the models did, by their names."""

    scores: dict[str, Score]
    """At a stride of the whole context."""
    half_stride_scores: dict[str, Score]
    """At a stride of half the context."""
    continuations: dict[str, Continuations]
    latency: dict[str, dict[str, float]]
    machine: dict[str, str | int]
    """Arithmetic, device and threads, for the protocol."""


@dataclass(frozen=True)
class _Text:
    """The evaluated text as token ids."""

    documents: list[Tokens]
    prompts: list[Tokens]
    latency_prompt: Tokens


def measure_models(section: Evaluate, documents: Sequence[Document], passages: Sequence[Passage], folders: Mapping[str, Path]) -> Measured:
    """Score, continue and time the models of the folders, all of which must have the same tokenizer.

    Each model is scored with fp32 weights and the matrix products of `section.precision`; then its weights are turned into that type for
    generation, as a server would, so that at most one model at a time is held in fp32.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    device = choose_device()
    arithmetic = choose_arithmetic(section.precision, device)
    tokenizer, end_of_text, text = _read_text(section, documents, passages, folders)
    options = _options(section, end_of_text)
    scores: dict[str, dict[int, Score]] = {}
    continued: dict[str, Continuations] = {}
    models: dict[str, PreTrainedModel] = {}
    for name, folder in folders.items():
        model: Any = load_model(folder)
        _refuse_too_long(section, options, text, model, folder)
        model.generation_config = GenerationConfig()  # nothing of the folder's own settings
        model = model.to(device)
        scores[name] = _score(name, model, text, section, end_of_text, arithmetic)
        models[name] = model.to(DTYPES[arithmetic])
        with progress(f"continue {name}", len(passages) * (1 + section.num_samples), "continuations") as bar:
            continued[name] = continue_passages(model, tokenizer, passages, text.prompts, options, advance=bar.advance)
    latency = measure_latency(
        models,
        prompt=text.latency_prompt,
        num_new_tokens=section.latency_new_tokens,
        repeats=section.latency_repeats,
        end_of_text_id=end_of_text,
    )
    return Measured(
        scores={name: by_stride[section.context] for name, by_stride in scores.items()},
        half_stride_scores={name: by_stride[section.context // 2] for name, by_stride in scores.items()},
        continuations=continued,
        latency=latency,
        machine={
            "end_of_text": str(tokenizer.convert_ids_to_tokens(end_of_text)),
            "max_new_tokens": options.num_new_tokens,
            "scoring_arithmetic": arithmetic,
            "generation_dtype": arithmetic,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "threads": torch.get_num_threads(),
        },
    )


def _score(name: str, model: PreTrainedModel, text: _Text, section: Evaluate, end_of_text: int, arithmetic: Arithmetic) -> dict[int, Score]:
    """The model's scores by stride: the whole context, and half of it."""
    strides = [section.context, section.context // 2]
    with progress(f"score {name}", num_windows(text.documents, section.context, strides), "windows") as bar:
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


def _read_text(
    section: Evaluate, documents: Sequence[Document], passages: Sequence[Passage], folders: Mapping[str, Path]
) -> tuple[PreTrainedTokenizerFast, int, _Text]:
    """The tokenizer that all folders share, its end-of-text token, and the text in its tokens."""
    (first, *others) = folders.values()
    tokenizer = load_tokenizer(first)
    end_of_text = end_of_text_id(tokenizer)
    by_document = encode(tokenizer, [document.text for document in documents])
    if not any(by_document):
        raise ProsemillError(f"the tokenizer of {first} makes no tokens of the test split: the base model does not fit the corpus")
    for folder in others:
        other = load_tokenizer(folder)
        same = other.get_vocab() == tokenizer.get_vocab() and end_of_text_id(other) == end_of_text
        if not same or encode(other, [document.text for document in documents]) != by_document:
            raise ProsemillError(f"the tokenizers of {first} and {folder} differ: train from this base model again with `dvc repro train`")
    stream = chain.from_iterable([end_of_text, *tokens] for tokens in by_document)
    latency_prompt = list(islice(cycle(stream), section.latency_prompt_tokens))
    return tokenizer, end_of_text, _Text(by_document, encode(tokenizer, [passage.prompt for passage in passages]), latency_prompt)


def encode(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[Tokens]:
    """Token ids of each text, whole; names of special tokens in it are ordinary text, and none is added."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return [encoding.ids for encoding in backend.encode_batch(list(texts), add_special_tokens=False)]


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


def _refuse_too_long(section: Evaluate, options: Options, text: _Text, model: PreTrainedModel, folder: Path) -> None:
    """Raise `ProsemillError` if a setting needs more positions than the model has."""
    limit = getattr(model.config, "max_position_embeddings", None)
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
