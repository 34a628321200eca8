"""Negative log-likelihood of documents under a causal language model, exact to the token.

    score = score_documents(model, [[5, 9, 12]], end_of_text_id=0, context=256, stride=256, batch_size=8, device=device, arithmetic="fp32")
    score.nll_sum / math.log(2) / num_bytes  # bits per byte

Every document stands alone: its tokens are predicted from the end-of-text token and the document's tokens before them. The closing
end-of-text is not scored, as it is no text. Tokens beyond `context` are seen through windows, each `stride` tokens further on, of which
only the tokens that no window scored before count (Hugging Face, "Perplexity of fixed-length models"). Here a window of n input tokens
predicts n tokens, so at stride = context too every token is scored once, the first of a window from the token before it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from prosemill.precision import Arithmetic, autocast

TOKENS_PER_BATCH = 2048  # bounds the logits: 0.2 GB in bf16 for 49,152 token ids
POSITIONS_AT_ONCE = 512  # of which log-probabilities are held in fp32: 0.1 GB
IGNORED = -100  # target of a position that is not scored


@dataclass(frozen=True)
class Score:
    """What was scored: the sum of -ln p over the tokens, in nats, and their number."""

    nll_sum: float
    num_tokens: int


@dataclass(frozen=True, order=True)
class Window:
    """Tokens [begin, end) of a document, of which [first_new, end) are scored here."""

    document: int
    begin: int
    first_new: int
    end: int

    @property
    def length(self) -> int:
        """Input tokens of the window."""
        return self.end - self.begin


def windows_of(document: int, num_tokens: int, context: int, stride: int) -> Iterator[Window]:
    """The windows over a document: each at most `context` long, `stride` tokens apart, scoring each token exactly once."""
    begin = scored = 0
    while scored < num_tokens:
        end = min(begin + context, num_tokens)
        yield Window(document, begin, scored, end)
        begin, scored = begin + stride, end


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
        model: A causal language model on `device`, in evaluation mode.
        documents: Token ids of each document, without end-of-text.
        end_of_text_id: The token that stands before each document.
        context: Input tokens of a window, at most.
        strides: Tokens from one window to the next, each between 1 and `context`.
        batch_size: Windows computed together, at most. The result does not depend on it beyond the rounding of the arithmetic.
        device: Where to compute.
        arithmetic: Of the matrix products; log-probabilities are fp32 and their sums float64 always.
        advance: Called with the number of windows just done.

    Returns:
        The score at each stride. Sums over windows are exactly rounded (`math.fsum`), so no order of batches changes them.
    """
    by_stride = {
        stride: [window for index, tokens in enumerate(documents) for window in windows_of(index, len(tokens), context, stride)]
        for stride in strides
    }
    # Longest first: rows of a batch are of like length, and memory that suffices for the first batch suffices for all.
    todo = sorted({window for windows in by_stride.values() for window in windows}, key=lambda window: (-window.length, window))
    nll_by_window: dict[Window, float] = {}
    with torch.inference_mode(), autocast(arithmetic, device):
        for batch in _batches(todo, batch_size):
            nll_by_window |= zip(batch, _score_batch(model, documents, batch, end_of_text_id, device), strict=True)
            advance(len(batch))
    num_tokens = sum(map(len, documents))
    return {stride: Score(math.fsum(nll_by_window[window] for window in windows), num_tokens) for stride, windows in by_stride.items()}


def num_windows(documents: Sequence[Sequence[int]], context: int, strides: Sequence[int]) -> int:
    """How many different windows `score_at_strides` computes."""
    return len(
        {
            window
            for stride in strides
            for index, tokens in enumerate(documents)
            for window in windows_of(index, len(tokens), context, stride)
        }
    )


def _batches(windows: Sequence[Window], batch_size: int) -> Iterator[Sequence[Window]]:
    """Consecutive windows (longest first) in batches of at most `batch_size` windows and, beyond one window, `TOKENS_PER_BATCH` tokens."""
    start = 0
    while start < len(windows):
        size = max(1, min(batch_size, TOKENS_PER_BATCH // windows[start].length))
        yield windows[start : start + size]
        start += size


def _score_batch(
    model: PreTrainedModel, documents: Sequence[Sequence[int]], batch: Sequence[Window], end_of_text_id: int, device: torch.device
) -> list[float]:
    """Sum of -ln p over the scored tokens of each window.

    Rows are padded on the right, where causal attention never looks, so no attention mask is needed: whatever stands there changes nothing.
    """
    width = max(window.length for window in batch)
    inputs = torch.full((len(batch), width), end_of_text_id)  # [windows, tokens]
    targets = torch.full((len(batch), width), IGNORED)  # [windows, tokens]
    for row, window in enumerate(batch):
        tokens = documents[window.document]
        inputs[row, 0] = tokens[window.begin - 1] if window.begin else end_of_text_id
        inputs[row, 1 : window.length] = torch.tensor(tokens[window.begin : window.end - 1])
        targets[row, window.first_new - window.begin : window.length] = torch.tensor(tokens[window.first_new : window.end])
    logits = model(input_ids=inputs.to(device), use_cache=False).logits  # [windows, tokens, vocabulary]
    return [_nll_of_row(row, wanted) for row, wanted in zip(logits, targets.to(device), strict=True)]


def _nll_of_row(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """Sum of -ln p of the targets [T] under the logits [T, V], where they are not `IGNORED`."""
    total = 0.0
    for part, wanted in zip(logits.split(POSITIONS_AT_ONCE), targets.split(POSITIONS_AT_ONCE), strict=True):
        nll = cross_entropy(part.float(), wanted, reduction="none", ignore_index=IGNORED)
        total += nll.double().sum().item()
    return total
