"""How the next token of each row of a batch is chosen, each row by settings and random numbers of its own.

    draws = Draws(settings)                                  # one for each request
    tokens = choose(logits, [draws, …], seen)                # logits: [rows, vocabulary]

What a row gets depends on its own logits and its own seed alone: no number is drawn for the batch as a whole, and every operation works on
each row by itself.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

CANDIDATES = 256
"""The likeliest tokens that are looked at first. Sorting a whole vocabulary takes as long as half a step of a small model."""


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


def choose(logits: torch.Tensor, draws: Sequence[Draws], seen: Sequence[torch.Tensor | None]) -> list[int]:
    """The next token of each row.

    Args:
        logits: What the model predicts, [rows, vocabulary], of any floating type; it is not changed.
        draws: Of each row; a number is drawn of each whose temperature is not 0.
        seen: Of each row, whether its text holds a token, [vocabulary]; None for a row without a repetition penalty.
    """
    penalised = [row for row, each in enumerate(draws) if each.settings.repetition_penalty != 1]
    if penalised:
        logits = logits.clone()
        for row in penalised:
            of_row = seen[row]
            assert of_row is not None
            logits[row] = penalise(logits[row], of_row, draws[row].settings.repetition_penalty)
    tokens: list[int] = torch.argmax(logits, dim=-1).tolist()
    drawn = [row for row, each in enumerate(draws) if each.settings.temperature > 0]
    if drawn:
        rows = logits if len(drawn) == len(draws) else logits[drawn]
        for row, token in zip(drawn, _draw(rows, [draws[row] for row in drawn]), strict=True):
            tokens[row] = token
    return tokens


def penalise(logits: torch.Tensor, seen: torch.Tensor, penalty: float) -> torch.Tensor:
    """The logits, those of tokens that were seen brought nearer to those of tokens that will not come."""
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def _draw(logits: torch.Tensor, draws: Sequence[Draws]) -> list[int]:
    """A token of each row, drawn from the candidates that `top_k` and `top_p` leave."""
    size = logits.shape[-1]
    temperatures = torch.tensor([[each.settings.temperature] for each in draws])  # [rows, 1]
    scaled = logits.float() / temperatures
    top, ids = torch.topk(scaled, min(CANDIDATES, size), dim=-1)
    # Probabilities among all tokens, so that what the candidates leave out is known.
    weights = torch.exp(top - torch.logsumexp(scaled, dim=-1, keepdim=True))
    tokens = []
    for row, each in enumerate(draws):
        candidates, shares = ids[row], weights[row]
        if not _are_enough(shares, each.settings, size):
            ordered, candidates = torch.sort(scaled[row], descending=True, stable=True)
            shares = torch.softmax(ordered, dim=-1)
        tokens.append(int(candidates[_pick(shares, each)]))
    return tokens


def _are_enough(weights: torch.Tensor, settings: Settings, size: int) -> bool:
    """Whether all tokens that may be drawn are among the candidates."""
    if len(weights) == size or 0 < settings.top_k <= len(weights):
        return True
    return settings.top_k == 0 and float(weights.sum()) >= settings.top_p


def _pick(weights: torch.Tensor, draws: Draws) -> int:
    """Which of the candidates, the likeliest first, a number falls on."""
    settings = draws.settings
    if settings.top_k:
        weights = weights[: settings.top_k]
    sums = torch.cumsum(weights.double(), dim=-1)
    if settings.top_k:
        sums = sums / sums[-1]  # top_p is a share of what top_k leaves
    num_kept = int(torch.searchsorted(sums, settings.top_p)) + 1
    sums = sums[:num_kept]
    return min(int(torch.searchsorted(sums, draws.next() * float(sums[-1]), right=True)), len(sums) - 1)
