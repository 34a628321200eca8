"""Negative log-likelihood of documents under a language model, exact to the token.

    score = score_documents(model, [[5, 9, 12]], end_of_text_id=0, context=256, stride=256, batch_size=8, device=device, arithmetic="fp32")
    score.nll_sum / math.log(2) / num_bytes  # bits per byte

Every document stands alone. What is predicted from what, and through which windows, is the family's own (`Family.windows`); the closing
end-of-text is not scored, as it is no text, and no token is scored twice.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from prosemill.families import Batch, Family, Window, family_of_model
from prosemill.families.family import IGNORED
from prosemill.precision import Arithmetic, autocast

TOKENS_PER_BATCH = 2048  # bounds the logits: 0.2 GB in bf16 for 49,152 token ids
POSITIONS_AT_ONCE = 512  # of which log-probabilities are held in fp32: 0.1 GB


@dataclass(frozen=True)
class Score:
    """What was scored: the sum of -ln p over the tokens, in nats, and their number."""

    nll_sum: float
    num_tokens: int


def score_documents(
    model: PreTrainedModel,
    documents: Sequence[Sequence[int]],
    *,
    end_of_text_id: int,
    context: int,
    stride: int,
    batch_size: int,
    device: torch.device,
    arithmetic: Arithmetic,
) -> Score:
    """Score documents at one stride. See `score_at_strides` for the arguments."""
    scores = score_at_strides(
        model,
        documents,
        end_of_text_id=end_of_text_id,
        context=context,
        strides=[stride],
        batch_size=batch_size,
        device=device,
        arithmetic=arithmetic,
    )
    return scores[stride]


def score_at_strides(
    model: PreTrainedModel,
    documents: Sequence[Sequence[int]],
    *,
    end_of_text_id: int,
    context: int,
    strides: Sequence[int],
    batch_size: int,
    device: torch.device,
    arithmetic: Arithmetic,
    advance: Callable[[int], object] = int,
) -> dict[int, Score]:
    """Score documents at several strides; a window that strides share is computed once.

    Args:
        model: A model on `device`, in evaluation mode.
        documents: Token ids of each document, without end-of-text.
        end_of_text_id: The token that ends a document.
        context: Input tokens of a window, at most.
        strides: Tokens from one window to the next, each between 1 and `context`.
        batch_size: Windows computed together, at most. The result does not depend on it beyond the rounding of the arithmetic.
        device: Where to compute.
        arithmetic: Of the matrix products; log-probabilities are fp32 and their sums float64 always.
        advance: Called with the number of windows just done.

    Returns:
        The score at each stride. Sums over windows are exactly rounded (`math.fsum`), so no order of batches changes them.
    """
    family = family_of_model(model)
    by_stride = {stride: _all_windows(family, documents, context, stride) for stride in strides}
    # Longest first: rows of a batch are of like length, and memory that suffices for the first batch suffices for all.
    todo = sorted({window for windows in by_stride.values() for window in windows}, key=lambda window: (-window.length, window))
    nll_by_window: dict[Window, float] = {}
    with torch.inference_mode(), autocast(arithmetic, device):
        for chosen in _batches(todo, batch_size):
            batch = family.frame(documents, chosen, model.config, end_of_text_id)
            nll_by_window |= zip(chosen, _score_batch(model, batch, device), strict=True)
            advance(len(chosen))
    return {
        stride: Score(math.fsum(nll_by_window[window] for window in windows), sum(window.num_new for window in windows))
        for stride, windows in by_stride.items()
    }


def num_windows(family: Family, documents: Sequence[Sequence[int]], context: int, strides: Sequence[int]) -> int:
    """How many different windows `score_at_strides` computes."""
    return len({window for stride in strides for window in _all_windows(family, documents, context, stride)})


def scored_ranges(family: Family, num_tokens: int, context: int, stride: int) -> list[tuple[int, int]]:
    """The tokens [first, end) of a document that are scored, neighbours joined."""
    ranges: list[tuple[int, int]] = []
    for window in family.windows(0, num_tokens, context, stride):
        if ranges and ranges[-1][1] == window.first_new:
            ranges[-1] = (ranges[-1][0], window.end)
        else:
            ranges.append((window.first_new, window.end))
    return ranges


def _all_windows(family: Family, documents: Sequence[Sequence[int]], context: int, stride: int) -> list[Window]:
    return [window for index, tokens in enumerate(documents) for window in family.windows(index, len(tokens), context, stride)]


def _batches(windows: Sequence[Window], batch_size: int) -> Iterator[Sequence[Window]]:
    """Consecutive windows (longest first) in batches of at most `batch_size` windows and, beyond one window, `TOKENS_PER_BATCH` tokens."""
    start = 0
    while start < len(windows):
        size = max(1, min(batch_size, TOKENS_PER_BATCH // windows[start].length))
        yield windows[start : start + size]
        start += size


def _score_batch(model: PreTrainedModel, batch: Batch, device: torch.device) -> list[float]:
    """Sum of -ln p over the labels of each row."""
    inputs = {name: value.to(device) for name, value in batch.items()}
    labels = inputs.pop("labels")
    logits = model(**inputs, use_cache=False).logits  # [windows, n, vocabulary]
    return [_nll_of_row(row, wanted) for row, wanted in zip(logits, labels, strict=True)]


def _nll_of_row(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """Sum of -ln p of the targets [T] under the logits [T, V], where they are not `IGNORED`."""
    total = 0.0
    for part, wanted in zip(logits.split(POSITIONS_AT_ONCE), targets.split(POSITIONS_AT_ONCE), strict=True):
        nll = cross_entropy(part.float(), wanted, reduction="none", ignore_index=IGNORED)
        total += nll.double().sum().item()
    return total
