"""How long a person waits: the time to the first token and between tokens, one request at a time.

    rows = measure_latency({"base": base, "trained": trained}, prompt=ids, num_new_tokens=32, repeats=5, end_of_text_id=0)
    rows["base"]["time_to_first_token_ms"]

The models are measured in turns, so that what else the machine does hits all of them alike.
"""

import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from prosemill.evaluation.continuations import plain_generation
from prosemill.families import family_of_model


class _Clock(BaseStreamer):
    """Notes when each token arrives. `generate` puts the prompt first, then every token, already copied from the device."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: object) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing remains to be noted."""


def measure_latency(
    models: Mapping[str, PreTrainedModel], *, prompt: Sequence[int], num_new_tokens: int, repeats: int, end_of_text_id: int
) -> dict[str, dict[str, Any]]:
    """Latency of greedy generation at batch size 1, with exactly `num_new_tokens` tokens each time.

    Args:
        models: By name.
        prompt: Token ids, without end-of-text, which is added: the models see one token more.
        num_new_tokens: At least 2.
        repeats: Measured generations of each model.
        end_of_text_id: The token that ends a document.

    Returns:
        By model, in milliseconds: the median and, with `_p95`, the 95th percentile (linear between measurements) of
        `time_to_first_token_ms` over the repeats and of `time_per_token_ms` over all intervals between tokens of all repeats. One more
        generation before them warms up and is not counted.
    """
    first: dict[str, list[float]] = {name: [] for name in models}
    between: dict[str, list[float]] = {name: [] for name in models}
    for repeat in range(repeats + 1):
        # Every other round goes backwards: none of the models always runs in the other's wake.
        for name, model in list(models.items())[:: -1 if repeat % 2 else 1]:
            to_first, intervals = _generate_once(model, prompt, num_new_tokens, end_of_text_id)
            if repeat > 0:
                first[name].append(to_first)
                between[name] += intervals
    return {name: _percentiles("time_to_first_token_ms", first[name]) | _percentiles("time_per_token_ms", between[name]) for name in models}


def _generate_once(model: PreTrainedModel, prompt: Sequence[int], num_new_tokens: int, end_of_text_id: int) -> tuple[float, list[float]]:
    """Milliseconds to the first token, and between each two tokens."""
    inputs = {name: value.to(model.device) for name, value in family_of_model(model).prompt([prompt], end_of_text_id).items()}
    config = plain_generation(num_new_tokens, [end_of_text_id])
    config.min_new_tokens = num_new_tokens
    generate: Any = model.generate
    clock = _Clock()
    start = time.perf_counter()
    with torch.inference_mode():
        generate(**inputs, generation_config=config, streamer=clock)
    arrivals = clock.times[1:]
    assert len(arrivals) == num_new_tokens
    return (arrivals[0] - start) * 1e3, [(later - earlier) * 1e3 for earlier, later in pairwise(arrivals)]


def _percentiles(name: str, milliseconds: Sequence[float]) -> dict[str, float]:
    median, high = np.percentile(milliseconds, [50, 95])
    return {name: float(median), f"{name}_p95": float(high)}
