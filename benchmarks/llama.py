"""llama.cpp as a peer, through the library that its server is made of (`pip install llama-cpp-python`).

peer = LlamaCpp(Path("SmolLM2-135M-Instruct.Q4_1.gguf"))
with peer.texts(8, context=256) as texts:
    texts.write(prompts, 64, temperature=0.8, top_p=0.9)
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from prosemill.families.family import IGNORED

MOST_AT_ONCE = 2048
"""Tokens that are read at once."""


class Texts:
    """Some texts' keys and values, each with room for `context` tokens. `LlamaCpp.texts` makes them."""

    def __init__(self, llama: Any, context: Any, batch: Any, vocabulary_size: int) -> None:
        self._llama, self._context, self._batch, self._vocabulary_size = llama, context, batch, vocabulary_size

    def write(self, prompts: Sequence[Sequence[int]], num_new_tokens: int, *, temperature: float, top_p: float) -> None:
        """Continue prompts of one length, one in each text, with tokens that are drawn."""
        llama, chains = self._llama, [self._chain(number, temperature, top_p) for number in range(len(prompts))]
        last = self._read(prompts, 0)
        for number in range(num_new_tokens):
            new = [llama.llama_sampler_sample(chain, self._context, at) for chain, at in zip(chains, last, strict=True)]
            if number + 1 < num_new_tokens:
                last = self._read([[token] for token in new], len(prompts[0]) + number)
        for chain in chains:
            llama.llama_sampler_free(chain)

    def nll(self, tokens: Sequence[int], labels: Sequence[int]) -> float:
        """Read one text instead of all that were read; as `Decoder.nll` the sum of -ln p of its labels, in nats."""
        self._llama.llama_memory_clear(self._llama.llama_get_memory(self._context), True)
        self._read([tokens], 0, asks_each=True)
        shape = len(tokens), self._vocabulary_size
        logits = torch.from_numpy(np.ctypeslib.as_array(self._llama.llama_get_logits(self._context), shape)).double()
        return float(cross_entropy(logits, torch.tensor(labels), ignore_index=IGNORED, reduction="sum"))

    def _chain(self, seed: int, temperature: float, top_p: float) -> Any:
        """What draws a text's tokens."""
        llama = self._llama
        chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        for part in (
            llama.llama_sampler_init_temp(temperature),
            llama.llama_sampler_init_top_p(top_p, 1),
            llama.llama_sampler_init_dist(seed),
        ):
            llama.llama_sampler_chain_add(chain, part)
        return chain

    def _read(self, rows: Sequence[Sequence[int]], begin: int, *, asks_each: bool = False) -> list[int]:
        """Read tokens of each row, for logits after its last one or after each; where in the batch each row's last one stands."""
        batch = self._batch
        places = [(row, begin + offset, token) for row, tokens in enumerate(rows) for offset, token in enumerate(tokens)]
        assert len(places) <= MOST_AT_ONCE
        batch.n_tokens = len(places)
        for at, (row, position, token) in enumerate(places):
            batch.token[at], batch.pos[at], batch.n_seq_id[at], batch.seq_id[at][0] = token, position, 1, row
            batch.logits[at] = asks_each or position == begin + len(rows[row]) - 1
        assert self._llama.llama_decode(self._context, batch) == 0
        return [(row + 1) * len(tokens) - 1 for row, tokens in enumerate(rows)]


class LlamaCpp:
    """A model of a GGUF file."""

    def __init__(self, gguf: Path) -> None:
        import llama_cpp  # type: ignore[import-not-found, unused-ignore]

        self._llama: Any = llama_cpp
        self._log = llama_cpp.llama_log_callback(lambda *_: None)  # kept, as C calls it
        llama_cpp.llama_log_set(self._log, None)
        self._model = llama_cpp.llama_model_load_from_file(str(gguf).encode(), llama_cpp.llama_model_default_params())
        self._vocabulary_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self.name = f"llama.cpp, {gguf.stem.rpartition('.')[2]}"

    @contextmanager
    def texts(self, num: int, *, context: int) -> Iterator[Texts]:
        """So many texts at once, each of at most `context` tokens."""
        llama = self._llama
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = context * num, MOST_AT_ONCE, 512, num
        params.n_threads = params.n_threads_batch = torch.get_num_threads()
        opened, batch = llama.llama_init_from_model(self._model, params), llama.llama_batch_init(MOST_AT_ONCE, 0, 1)
        yield Texts(llama, opened, batch, self._vocabulary_size)
        llama.llama_batch_free(batch)
        llama.llama_free(opened)
