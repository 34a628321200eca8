"""How fast the engine writes and how well it predicts, beside what people would pick instead.

    python -m benchmarks.decoding [--precision int4 …] [--gguf FILE]

The default job's base model (`dvc repro download` makes it), 64 new tokens for each of 1, 8 and 32 prompts of 32 tokens that come at once,
sampling on. Tokens a second from the first request to the last token, prompts included; the median of the rounds, in which all take turns.
The peers are transformers' `generate` and its continuous batching, both in bf16, and with `--gguf` llama.cpp, on a file of the same model
(`pip install llama-cpp-python`).

Bits per byte are those of the corpus's test split, each document by itself after the end of text, from the same tokens for all: of the
engine, in fp32 too, and of llama.cpp. No load of the machine changes them.
"""

import math
import queue
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, cast

import torch
import typer
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.llama import LlamaCpp
from prosemill.evaluation.documents import read_split
from prosemill.families import family_of
from prosemill.generation.decoder import Decoder
from prosemill.generation.engine import NUM_SPARE, Engine
from prosemill.generation.layout import Layout
from prosemill.generation.precision import Precision
from prosemill.generation.sampling import Settings
from prosemill.generation.writer import Framed, Writer
from prosemill.pretrained import load_model, load_tokenizer
from prosemill.workspace import BASE_MODEL, CORPUS

SIZES = (1, 8, 32)
NUM_PROMPT_TOKENS = 32
NUM_NEW_TOKENS = 64
PRECISIONS: tuple[Precision, ...] = ("bf16", "int8", "int4")
CONTEXT = 2048
SAMPLING = {"temperature": 0.8, "top_p": 0.9}
TEXT = "The history of the city begins with a village at the river, whose people lived by fishing and by what the boats brought them. "

Run = Callable[[list[list[int]]], float]
"""Tokens a second for prompts."""


def main(
    precision: Annotated[list[str] | None, typer.Option(help="Of the engine; may be repeated.")] = None,
    rounds: Annotated[int, typer.Option(help="Measurements of each.")] = 3,
    gguf: Annotated[Path | None, typer.Option(help="For llama.cpp: the model as a GGUF file.", exists=True, dir_okay=False)] = None,
) -> None:
    """Measure and print a Markdown table."""
    tokenizer, model = load_tokenizer(BASE_MODEL), load_model(BASE_MODEL, torch.bfloat16)
    layout = family_of(BASE_MODEL).layout(load_model(BASE_MODEL))
    peer = None if gguf is None else LlamaCpp(gguf)
    runs: dict[str, Run] = {"transformers `generate`, bf16": lambda given: by_generate(model, given)}
    runs["transformers' continuous batching, bf16"] = lambda given: by_continuous_batching(model, given)
    framed = framed_corpus()
    nll: dict[str, float] = {}
    if peer is not None:
        runs[peer.name] = lambda given: by_llama_cpp(peer, given)
        nll[peer.name] = nll_by_llama_cpp(peer, framed)
    nll["engine, fp32"] = nll_by_engine(layout, "fp32", tokenizer, framed)
    for each in cast("list[Precision]", precision) or PRECISIONS:
        runs[f"engine, {each}"] = lambda given, each=each: by_engine(layout, each, tokenizer, given)  # type: ignore[misc]
        nll[f"engine, {each}"] = nll_by_engine(layout, each, tokenizer, framed)
    report(speeds(runs, {size: prompts(tokenizer, size) for size in SIZES}, rounds), nll, sum(each.num_bytes for each in framed))


def speeds(runs: dict[str, Run], with_size: dict[int, list[list[int]]], rounds: int) -> dict[str, dict[int, float]]:
    """The median speed of each at each size."""
    found = {name: {size: list[float]() for size in with_size} for name in runs}
    for number in range(rounds + 1):
        for size, given in with_size.items():
            for name, run in runs.items():
                speed = run(given)
                if number > 0:  # the first one warms up
                    found[name][size].append(speed)
    return {name: {size: statistics.median(each) for size, each in sizes.items()} for name, sizes in found.items()}


def report(found: dict[str, dict[int, float]], nll: dict[str, float], num_bytes: int) -> None:
    """Print speeds, each also as a multiple of the first one's, and bits per byte."""
    first = next(iter(found.values()))
    print(f"| concurrent sequences | {' | '.join(map(str, SIZES))} | bits per byte of {num_bytes:,} |\n|---|{'---|' * len(SIZES)}---|")
    for name in found | nll:
        cells = [f"{speed:.0f} ({speed / first[size]:.1f} ×)" for size, speed in found.get(name, {}).items()] or ["–"] * len(SIZES)
        bits = f"{nll[name] / math.log(2) / num_bytes:.4f}" if name in nll else "–"
        print(f"| {name} | {' | '.join(cells)} | {bits} |")


def prompts(tokenizer: PreTrainedTokenizerFast, num: int) -> list[list[int]]:
    """Prompts of one length that begin differently."""
    return [[0, *tokenizer.encode(f"{number}. {TEXT * 3}", add_special_tokens=False)][:NUM_PROMPT_TOKENS] for number in range(num)]


def by_generate(model: PreTrainedModel, given: list[list[int]]) -> float:
    """Tokens a second of one static batch."""
    config = GenerationConfig(
        max_new_tokens=NUM_NEW_TOKENS, min_new_tokens=NUM_NEW_TOKENS, do_sample=True, top_k=0, pad_token_id=0, eos_token_id=0, **SAMPLING
    )
    batch, generate = torch.tensor(given), model.generate
    begin = time.perf_counter()
    with torch.inference_mode():
        generate(input_ids=batch, attention_mask=torch.ones_like(batch), generation_config=config)  # type: ignore[operator]
    return len(given) * NUM_NEW_TOKENS / (time.perf_counter() - begin)


def by_continuous_batching(model: PreTrainedModel, given: list[list[int]]) -> float:
    """Tokens a second of transformers' own engine."""
    config = GenerationConfig(max_new_tokens=NUM_NEW_TOKENS, do_sample=True, top_k=0, pad_token_id=0, eos_token_id=-1, **SAMPLING)
    batching = ContinuousBatchingConfig(num_blocks=len(given) * 2, max_batch_tokens=max(256, len(given)), use_cuda_graph=False)
    begin = time.perf_counter()
    found = model.generate_batch(given, generation_config=config, continuous_batching_config=batching)  # type: ignore[operator]
    seconds = time.perf_counter() - begin
    assert sum(len(answer.generated_tokens) for answer in found.values()) == len(given) * NUM_NEW_TOKENS
    return len(given) * NUM_NEW_TOKENS / seconds


def by_llama_cpp(peer: LlamaCpp, given: list[list[int]]) -> float:
    """Tokens a second of one batch of sequences."""
    with peer.texts(len(given), context=256) as texts:
        begin = time.perf_counter()
        texts.write(given, NUM_NEW_TOKENS, **SAMPLING)
        return len(given) * NUM_NEW_TOKENS / (time.perf_counter() - begin)


def by_engine(layout: Layout, precision: Precision, tokenizer: PreTrainedTokenizerFast, given: list[list[int]]) -> float:
    """Tokens a second of requests that come at once."""
    key = (precision, len(given))
    if key not in _DECODERS:
        _DECODERS[key] = Decoder(layout, precision=precision, num_rows=len(given) + NUM_SPARE)
    with Engine(_DECODERS[key], tokenizer, stops=(), context=CONTEXT) as engine:
        begin = time.perf_counter()
        settings = [Settings(max_new_tokens=NUM_NEW_TOKENS, seed=number, **SAMPLING) for number in range(len(given))]  # type: ignore[arg-type]
        answers = [engine.answer(tokens, each) for tokens, each in zip(given, settings, strict=True)]
        for answer in answers:
            for _ in answer:
                pass
        seconds = time.perf_counter() - begin
    return len(given) * NUM_NEW_TOKENS / seconds


def framed_corpus() -> list[Framed]:
    """Each document of the test split by itself, as `/score` of the service takes it."""
    with Writer.open(BASE_MODEL, precision="fp32", num_rows=1) as writer:
        return [writer.frame(document.text) for document in read_split(CORPUS, "test", None)[0]]


def nll_by_llama_cpp(peer: LlamaCpp, framed: Sequence[Framed]) -> float:
    """Sum of -ln p, in nats."""
    with peer.texts(1, context=max(len(each.tokens) for each in framed)) as texts:
        return math.fsum(texts.nll(each.tokens, each.labels) for each in framed)


def nll_by_engine(layout: Layout, precision: Precision, tokenizer: PreTrainedTokenizerFast, framed: Sequence[Framed]) -> float:
    """Sum of -ln p, in nats."""
    decoder, answers = Decoder(layout, precision=precision, num_rows=1 + NUM_SPARE), queue.SimpleQueue[float | Exception]()
    with Engine(decoder, tokenizer, stops=(), context=CONTEXT) as engine:
        for each in framed:
            engine.score(each.given, each.tokens, each.labels, answers.put)
        found = [answers.get() for _ in framed]
    nll = [each for each in found if isinstance(each, float)]
    assert len(nll) == len(framed), found
    return math.fsum(nll)


_DECODERS: dict[tuple[Precision, int], Decoder] = {}


if __name__ == "__main__":
    typer.run(main)
