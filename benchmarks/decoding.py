"""How fast the engine writes, beside transformers' `generate` on the same prompts: `python -m benchmarks.decoding [--precision int4 …]`.

The default job's base model (`dvc repro download` makes it), 64 new tokens for each of 1, 8 and 32 prompts of 32 tokens that come at once,
sampling on. Tokens a second from the first request to the last token, prompts included; the median of the rounds, in which all take turns.
"""

import statistics
import time
from collections.abc import Callable
from typing import Annotated, Any

import torch
import typer
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from prosemill.families import family_of
from prosemill.generation.decoder import Decoder
from prosemill.generation.engine import NUM_SPARE, Engine
from prosemill.generation.kernels import Precision
from prosemill.generation.sampling import Settings
from prosemill.pretrained import load_model, load_tokenizer
from prosemill.workspace import BASE_MODEL

SIZES = (1, 8, 32)
NUM_PROMPT_TOKENS = 32
NUM_NEW_TOKENS = 64
SAMPLING = {"temperature": 0.8, "top_p": 0.9}
TEXT = "The history of the city begins with a village at the river, whose people lived by fishing and by what the boats brought them. "


def main(
    precision: Annotated[list[str] | None, typer.Option(help="Of the engine; may be repeated.")] = None,
    rounds: Annotated[int, typer.Option(help="Measurements of each.")] = 3,
) -> None:
    """Measure and print a Markdown table."""
    tokenizer, model = load_tokenizer(BASE_MODEL), load_model(BASE_MODEL, torch.bfloat16)
    layout = family_of(BASE_MODEL).layout(load_model(BASE_MODEL))
    print(f"| concurrent sequences | {' | '.join(map(str, SIZES))} |\n|---|{'---|' * len(SIZES)}")
    with_size = {size: prompts(tokenizer, size) for size in SIZES}
    runs: dict[str, Callable[[list[list[int]]], float]] = {"transformers `generate`, bf16": lambda given: by_generate(model, given)}
    for each in precision or ["bf16", "int8", "int4"]:
        runs[f"engine, {each}"] = lambda given, each=each: by_engine(layout, each, tokenizer, given)  # type: ignore[misc]
    found = {name: {size: [] for size in SIZES} for name in runs}  # type: dict[str, dict[int, list[float]]]
    for number in range(rounds + 1):
        for size, given in with_size.items():
            for name, run in runs.items():
                speed = run(given)
                if number > 0:  # the first one warms up
                    found[name][size].append(speed)
    peer = {size: statistics.median(speeds) for size, speeds in next(iter(found.values())).items()}
    for name, sizes in found.items():
        medians = {size: statistics.median(speeds) for size, speeds in sizes.items()}
        cells = [f"{speed:.0f} ({speed / peer[size]:.1f} ×)" for size, speed in medians.items()]
        print(f"| {name} | {' | '.join(cells)} |")


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


def by_engine(layout: Any, precision: Precision, tokenizer: PreTrainedTokenizerFast, given: list[list[int]]) -> float:
    """Tokens a second of requests that come at once."""
    key = (precision, len(given))
    if key not in _DECODERS:
        _DECODERS[key] = Decoder(layout, precision=precision, num_rows=len(given) + NUM_SPARE, reading="bf16")
    with Engine(_DECODERS[key], tokenizer, stops=(), context=2048) as engine:
        begin = time.perf_counter()
        settings = [Settings(max_new_tokens=NUM_NEW_TOKENS, seed=number, **SAMPLING) for number in range(len(given))]  # type: ignore[arg-type]
        answers = [engine.answer(tokens, each) for tokens, each in zip(given, settings, strict=True)]
        for answer in answers:
            for _ in answer:
                pass
        seconds = time.perf_counter() - begin
    return len(given) * NUM_NEW_TOKENS / seconds


_DECODERS: dict[tuple[Precision, int], Decoder] = {}


if __name__ == "__main__":
    typer.run(main)
