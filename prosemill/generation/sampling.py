"""How the next token of each row of a batch is chosen, each row by settings and random numbers of its own.

    draws = Draws(settings)                                  # one for each request
    tokens = choose(logits, [draws, …], seen)                # logits: [rows, vocabulary]

What a row gets depends on its own logits and its own seed alone: no number is drawn for the batch as a whole, and every operation works on
each row by itself.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from prosemill.generation import native
from prosemill.generation.kernels import TINY

CANDIDATES = 256
"""The likeliest tokens that are looked at first. Sorting a whole vocabulary takes as long as half a step of a small model."""

LEAST = 1e-30
"""Share of the likeliest token's probability below which there is no looking step by step for more."""

STRONGEST = 1e30
"""The strongest repetition penalty, one way or the other: by a stronger one finite logits would become infinite."""

Sums = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a request is continued; the defaults are those of `POST /generate`."""

    max_new_tokens: int = 100
    temperature: float = 0.8
    """0 always takes the likeliest token."""
    top_k: int = 0
    """Draw from so many of the likeliest tokens; 0 from all."""
    top_p: float = 0.9
    """Draw from the fewest likeliest tokens that together have this probability."""
    repetition_penalty: float = 1.0
    """Divides positive logits of tokens that prompt or answer hold already, and multiplies negative ones (Keskar et al., 2019, CTRL)."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of it."""
    seed: int = 0

    def __post_init__(self) -> None:
        limits = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "temperature": (0 <= self.temperature < math.inf, "a number of at least 0"),
            "top_k": (self.top_k >= 0, "at least 0"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "repetition_penalty": (0 < self.repetition_penalty < math.inf, "a number above 0"),
            "stop": (all(self.stop), "texts of at least one character"),
            "seed": (0 <= self.seed < 2**63, "at least 0 and below 2^63"),
        }
        for name, (holds, what) in limits.items():
            if not holds:
                raise ValueError(f"{name} must be {what}, not {getattr(self, name)!r}")


class Draws:
    """A request's settings and its own source of random numbers."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._generator = torch.Generator().manual_seed(settings.seed)

    def next(self) -> float:
        """A number of [0, 1)."""
        return torch.rand((), generator=self._generator, dtype=torch.float64).item()


def _drawing(draws: Draws) -> native.Drawing:
    settings = draws.settings
    return native.Drawing(settings.temperature, settings.top_k, settings.top_p, draws.next() if settings.temperature else 0.0)


def choose(logits: torch.Tensor, draws: Sequence[Draws], seen: Sequence[torch.Tensor | None]) -> list[int | None]:
    """The next token of each row; None for one whose logits are no finite numbers, from which nothing can be drawn.

    Args:
        logits: What the model predicts, [rows, vocabulary], of any floating type and on any device; it is not changed.
        draws: Of each row; a number is drawn of each whose temperature is not 0.
        seen: Of each row, whether its text holds a token, [vocabulary]; None for a row without a repetition penalty.
    """
    logits = logits.cpu()  # from wherever they were computed: what follows goes through them once
    penalised = [row for row, each in enumerate(draws) if each.settings.repetition_penalty != 1]
    if penalised:
        logits = logits.clone()
        for row in penalised:
            of_row = seen[row]
            assert of_row is not None
            logits[row] = penalise(logits[row], of_row, draws[row].settings.repetition_penalty)
    library = native.load()
    if library is not None:
        return native.choose(library, logits, [_drawing(each) for each in draws])
    tokens = list[int | None]([None] * len(draws))
    sound = [row for row, is_finite in enumerate(torch.isfinite(logits.amax(dim=-1)).tolist()) if is_finite]
    drawn = [row for row in sound if draws[row].settings.temperature > 0]
    greedy = [row for row in sound if draws[row].settings.temperature == 0]
    for rows, find in ((drawn, _draw), (greedy, _likeliest)):
        if rows:
            of_rows = logits if len(rows) == len(draws) else logits[rows]
            for row, token in zip(rows, find(of_rows, [draws[row] for row in rows]), strict=True):
                tokens[row] = token
    return tokens


def penalise(logits: torch.Tensor, seen: torch.Tensor, penalty: float) -> torch.Tensor:
    """The logits, those of tokens that were seen brought nearer to those of tokens that will not come."""
    penalty = min(max(penalty, 1 / STRONGEST), STRONGEST)
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def _likeliest(logits: torch.Tensor, _draws: Sequence[Draws]) -> list[int]:
    return torch.argmax(logits, dim=-1).tolist()


def _draw(logits: torch.Tensor, draws: Sequence[Draws]) -> list[int]:
    """A token of each row, drawn from the candidates that `top_k` and `top_p` leave."""
    size = logits.shape[-1]
    logits = logits.float()
    # From the likeliest on, so that no temperature is too small to divide by.
    temperatures = torch.tensor([[each.settings.temperature] for each in draws], dtype=torch.float32).clamp_(min=TINY)
    weights = (logits - logits.amax(dim=-1, keepdim=True)) / temperatures
    top, ids = torch.topk(weights, min(CANDIDATES, size), dim=-1)
    weights = weights.exp_()
    # Each row's sum by itself, because torch adds up a single row in another order than several.
    totals = torch.stack([row.sum() for row in weights])[:, None].double()
    shares = (torch.cumsum(top.exp().double(), dim=-1) / totals).numpy()
    tokens = []
    for row, each in enumerate(draws):
        candidates, sums = ids[row], shares[row]
        if not _are_enough(sums, each.settings, size):
            candidates = _likelier(weights[row], float(totals[row]), each.settings)
            sums = (torch.cumsum(weights[row][candidates].double(), dim=-1) / totals[row]).numpy()
        tokens.append(int(candidates[_pick(sums, each)]))
    return tokens


def _likelier(weights: torch.Tensor, total: float, settings: Settings) -> torch.Tensor:
    """Tokens among which are all that may be drawn, the likeliest first; where it does not matter, in their own order.

    Args:
        weights: In proportion to their probability, the greatest of them 1, [vocabulary].
        total: The sum of these.
        settings: What may be drawn.
    """
    if settings.top_k:
        return torch.topk(weights, min(settings.top_k, len(weights))).indices
    if settings.top_p == 1:
        return torch.arange(len(weights))
    least = 1.0
    while least > LEAST and float(weights[weights >= least].sum()) < settings.top_p * total:
        least /= 4
    ids = torch.nonzero(weights >= (least if least > LEAST else 0)).flatten()
    return ids[torch.sort(weights[ids], descending=True, stable=True).indices]


def _are_enough(sums: Sums, settings: Settings, size: int) -> bool:
    """Whether all tokens that may be drawn are among the candidates."""
    if settings.top_k:
        return settings.top_k <= len(sums) or len(sums) == size
    return settings.top_p < 1 and sums[-1] >= settings.top_p


def _pick(sums: Sums, draws: Draws) -> int:
    """Which of the candidates, the likeliest first, a number falls on, by the shares of each and those before it."""
    settings = draws.settings
    if settings.top_k:
        sums = sums[: settings.top_k]
        sums = sums / sums[-1]  # top_p is a share of what top_k leaves
    num_kept = int(np.searchsorted(sums, settings.top_p)) + 1
    sums = sums[:num_kept]
    return min(int(np.searchsorted(sums, draws.next() * sums[-1], side="right")), len(sums) - 1)
