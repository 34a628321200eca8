"""How fast the engine writes, beside what people would pick instead: `python -m benchmarks.decoding [--precision int4 …] [--gguf FILE]`.

The default job's base model (`dvc repro download` makes it), 64 new tokens for each of 1, 8 and 32 prompts of 32 tokens that come at once,
sampling on. Tokens a second from the first request to the last token, prompts included; the median of the rounds, in which all take turns.
The peers are transformers' `generate` and its continuous batching, both in bf16, and with `--gguf` llama.cpp, on a file of the same model
(`pip install llama-cpp-python`).
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from prosemill.families import family_of
from prosemill.generation.decoder import Decoder
from prosemill.generation.engine import NUM_SPARE, Engine
from prosemill.generation.precision import Precision
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
    gguf: Annotated[Path | None, typer.Option(help="For llama.cpp: the model as a GGUF file.", exists=True, dir_okay=False)] = None,
) -> None:
    """Measure and print a Markdown table."""
    tokenizer, model = load_tokenizer(BASE_MODEL), load_model(BASE_MODEL, torch.bfloat16)
    layout = family_of(BASE_MODEL).layout(load_model(BASE_MODEL))
    print(f"| concurrent sequences | {' | '.join(map(str, SIZES))} |\n|---|{'---|' * len(SIZES)}")
    with_size = {size: prompts(tokenizer, size) for size in SIZES}
    runs: dict[str, Callable[[list[list[int]]], float]] = {"transformers `generate`, bf16": lambda given: by_generate(model, given)}
    runs["transformers' continuous batching, bf16"] = lambda given: by_continuous_batching(model, given)
    if gguf is not None:
        runs[f"llama.cpp, {gguf.stem.rpartition('.')[2]}"] = lambda given: by_llama_cpp(gguf, given)
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


def by_continuous_batching(model: PreTrainedModel, given: list[list[int]]) -> float:
    """Tokens a second of transformers' own engine."""
    config = GenerationConfig(max_new_tokens=NUM_NEW_TOKENS, do_sample=True, top_k=0, pad_token_id=0, eos_token_id=-1, **SAMPLING)
    batching = ContinuousBatchingConfig(num_blocks=len(given) * 2, max_batch_tokens=max(256, len(given)), use_cuda_graph=False)
    begin = time.perf_counter()
    found = model.generate_batch(given, generation_config=config, continuous_batching_config=batching)  # type: ignore[operator]
    seconds = time.perf_counter() - begin
    assert sum(len(answer.generated_tokens) for answer in found.values()) == len(given) * NUM_NEW_TOKENS
    return len(given) * NUM_NEW_TOKENS / seconds


def by_llama_cpp(gguf: Path, given: list[list[int]]) -> float:
    """Tokens a second of one batch of sequences, through the library that its server is made of."""
    import llama_cpp as llama  # type: ignore[import-not-found, unused-ignore]

    if "model" not in _LLAMA:
        _LLAMA["log"] = llama.llama_log_callback(lambda *_: None)
        llama.llama_log_set(_LLAMA["log"], None)
        _LLAMA["model"] = llama.llama_model_load_from_file(str(gguf).encode(), llama.llama_model_default_params())
    params = llama.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = 256 * len(given), 2048, 512, len(given)
    params.n_threads = params.n_threads_batch = torch.get_num_threads()
    context = llama.llama_init_from_model(_LLAMA["model"], params)
    chains = []
    for number in range(len(given)):
        chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        llama.llama_sampler_chain_add(chain, llama.llama_sampler_init_temp(SAMPLING["temperature"]))
        llama.llama_sampler_chain_add(chain, llama.llama_sampler_init_top_p(SAMPLING["top_p"], 1))
        llama.llama_sampler_chain_add(chain, llama.llama_sampler_init_dist(number))
        chains.append(chain)
    batch = llama.llama_batch_init(len(given) * NUM_PROMPT_TOKENS, 0, 1)

    def decode(rows: list[list[int]], begin: int) -> list[int]:
        """Read tokens of each row; where in the batch each row's last one stands."""
        places = [(row, begin + offset, token) for row, tokens in enumerate(rows) for offset, token in enumerate(tokens)]
        batch.n_tokens = len(places)
        for at, (row, position, token) in enumerate(places):
            batch.token[at], batch.pos[at], batch.n_seq_id[at], batch.seq_id[at][0] = token, position, 1, row
            batch.logits[at] = position == begin + len(rows[row]) - 1
        assert llama.llama_decode(context, batch) == 0
        return [(row + 1) * len(tokens) - 1 for row, tokens in enumerate(rows)]

    begin = time.perf_counter()
    last = decode(given, 0)
    for number in range(NUM_NEW_TOKENS):
        new = [llama.llama_sampler_sample(chain, context, at) for chain, at in zip(chains, last, strict=True)]
        if number + 1 < NUM_NEW_TOKENS:
            last = decode([[token] for token in new], NUM_PROMPT_TOKENS + number)
    seconds = time.perf_counter() - begin
    for chain in chains:
        llama.llama_sampler_free(chain)
    llama.llama_batch_free(batch)
    llama.llama_free(context)
    return len(given) * NUM_NEW_TOKENS / seconds


def by_engine(layout: Any, precision: Precision, tokenizer: PreTrainedTokenizerFast, given: list[list[int]]) -> float:
    """Tokens a second of requests that come at once."""
    key = (precision, len(given))
    if key not in _DECODERS:
        _DECODERS[key] = Decoder(layout, precision=precision, num_rows=len(given) + NUM_SPARE)
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
_LLAMA: dict[str, Any] = {}


if __name__ == "__main__":
    typer.run(main)
