"""A model folder that writes: text goes in, text comes out, many requests at once.

with Writer.open(Path("models/trained"), precision="int8") as writer:
    answer = writer.answer("The history of", Settings(max_new_tokens=20))
    for piece in answer:
        print(piece, end="")
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from prosemill.errors import first_line
from prosemill.families import Family, family_of
from prosemill.generation import native
from prosemill.generation.decoder import Decoder
from prosemill.generation.engine import NUM_SPARE, Engine
from prosemill.generation.engine_thread import Answer, EngineThread
from prosemill.generation.engines import EngineName
from prosemill.generation.precision import Precision
from prosemill.generation.sampling import Settings
from prosemill.precision import choose_arithmetic, choose_device
from prosemill.pretrained import end_of_text_id, load_model, load_tokenizer, stop_tokens

NUM_ROWS = 32
"""Texts that are written at once, unless another number is asked for."""
GREATEST_COST = 0.005
"""Share of bits per byte that `choose_precision` may spend."""
WARM_UP = Settings(max_new_tokens=4, temperature=1.0)


def choose_precision(costs: Mapping[str, float]) -> Precision:
    """The fastest precision that costs no more than `GREATEST_COST`; on a CUDA device bf16, or fp32 if it does not multiply such numbers.

    Args:
        costs: What each adds to bits per byte on a CPU, as a share of what fp32 gets. Where nothing was measured, it is bf16 if the
            processor multiplies such numbers, and else fp32.
    """
    device = choose_device()
    if not costs or device.type == "cuda":
        return "bf16" if choose_arithmetic("auto", device) == "bf16" else "fp32"
    fastest_first: tuple[Precision, ...] = ("int4", "int8", "bf16") if native.load() is None else ("int8", "int4", "bf16")
    return next((precision for precision in fastest_first if costs.get(precision, 1.0) <= GREATEST_COST), "fp32")


class Framed(NamedTuple):
    """A text that is to be scored, as `Engine.score` takes it."""

    given: list[int] | None
    tokens: list[int]
    labels: list[int]
    num_tokens: int
    """That are predicted: all, or with an encoder, which reads the first half, those of the second."""
    num_bytes: int
    """UTF-8 bytes of these."""


class Writer:
    """An engine, and what makes tokens of a text for its model. `open` makes one."""

    def __init__(self, engine: EngineThread, family: Family, tokenizer: PreTrainedTokenizerFast, config: PreTrainedConfig) -> None:
        self.engine = engine
        self.context = family.context_size(config.to_dict())
        """Tokens that the model sees at most; None where its architecture sets no bound."""
        self._family, self._tokenizer, self._config = family, tokenizer, config
        self._end_of_text_id = end_of_text_id(tokenizer)

    @classmethod
    @contextmanager
    def open(cls, folder: Path, *, precision: Precision, num_rows: int = NUM_ROWS, engine: EngineName = "own") -> Iterator["Writer"]:
        """Load a model folder's weights; nothing else of it is run.

        Args:
            folder: What `train` wrote, or any model of a supported family.
            precision: In which the weights are held.
            num_rows: Texts that are written at once.
            engine: Who writes: our own engine, or vLLM where it is installed.

        Raises:
            ProsemillError: the folder is broken, or of a family that is not supported, or vLLM does not serve it here.
        """
        transformers_logging.disable_progress_bar()
        family, tokenizer = family_of(folder), load_tokenizer(folder)
        stops = stop_tokens(tokenizer, end_of_text_id(tokenizer))
        if engine == "vllm":
            from prosemill.generation.on_vllm import open_engine

            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            with open_engine(folder, family, config, tokenizer, stops=stops, precision=precision, num_rows=num_rows) as on_vllm:
                yield cls(on_vllm, family, tokenizer, config)
            return
        model = load_model(folder)
        model.to(device_for(precision))  # type: ignore[arg-type]
        config, layout = model.config, family.layout(model)
        decoder = Decoder(layout, precision=precision, num_rows=num_rows + NUM_SPARE)
        del model, layout  # or these weights would be held beside the decoder's own
        context = family.context_size(config.to_dict())

        with Engine(decoder, tokenizer, stops=stops, context=context) as own:
            yield cls(own, family, tokenizer, config)

    def read(self, prompt: str) -> list[int]:
        """The tokens that stand for a prompt, with those that the model wants around it."""
        tokens = self._tokenizer.encode(prompt, add_special_tokens=False)
        ids: list[int] = self._family.prompt([tokens], self._end_of_text_id)["input_ids"][0].tolist()
        return ids

    def frame(self, text: str) -> Framed:
        """What is read and predicted of a text, as one window. Raises `ValueError` if the tokenizer makes no tokens of it."""
        encoding = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        tokens = encoding["input_ids"]
        if not tokens:
            raise ValueError("the tokenizer makes no tokens of the text")
        window = next(iter(self._family.windows(0, len(tokens), len(tokens), len(tokens))))
        batch = self._family.frame([tokens], [window], self._config, self._end_of_text_id)
        rows = {name: value[0].tolist() for name, value in batch.items()}
        begin = encoding["offset_mapping"][window.first_new][0] if window.first_new else 0
        return Framed(
            given=rows["input_ids"] if "decoder_input_ids" in rows else None,
            tokens=rows.get("decoder_input_ids", rows["input_ids"]),
            labels=rows["labels"],
            num_tokens=window.num_new,
            num_bytes=len(text[begin:].encode()),
        )

    def answer(self, prompt: str, settings: Settings) -> Answer:
        """Continue a prompt, for one thread that waits. Raises `ValueError` as `Engine.submit` does."""
        return self.engine.answer(self.read(prompt), settings)

    def warm_up(self, text: str = "The history of the world") -> None:
        """Write a few tokens and score a text, so that the first request need not wait for what a first time takes.

        Raises:
            RuntimeError: the model can do neither: what it predicts is no finite numbers, or there is no memory for it.
        """
        answer = self.answer(text, WARM_UP)
        for _ in answer:
            pass
        assert answer.end is not None
        if answer.end.reason == "failed":
            raise RuntimeError(answer.end.error)
        framed, score = self.frame(text), Future[float | Exception]()
        self.engine.score(framed.given, framed.tokens, framed.labels, score.set_result)
        found = score.result()
        if isinstance(found, Exception):
            raise RuntimeError(first_line(found)) from found


def device_for(precision: Precision) -> torch.device:
    """A CUDA device where there is one, but the CPU for weights of few bits, which are its own."""
    return torch.device("cpu") if precision in ("int8", "int4") else choose_device()
