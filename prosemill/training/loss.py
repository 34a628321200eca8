"""The token-weighted loss: a sum over tokens divided by their number, whatever the batch was cut into.

    nll = token_nll(logits, labels)  # [batch, n], in nats
    loss = nll.sum() / labels.ne(IGNORED).sum()

Averaging the means of parts of unequal size would weigh tokens unequally; nothing here averages a mean.
"""

import torch
from torch import nn
from torch.nn import functional

from prosemill.families import Batch
from prosemill.families.family import IGNORED


def token_nll(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of each label, in nats, in fp32.

    Args:
        logits: [batch, n, vocabulary]; position i predicts label i.
        labels: [batch, n], token ids, or `IGNORED` where nothing is predicted.

    Returns:
        [batch, n]; zero where the label is ignored.
    """
    nll = functional.cross_entropy(logits.flatten(0, 1).float(), labels.reshape(-1), ignore_index=IGNORED, reduction="none")
    return nll.view(labels.shape)


def sum_over_tokens(logits: torch.Tensor, labels: torch.Tensor, num_tokens: torch.Tensor | int | None) -> torch.Tensor:
    """The loss of one part of a batch: its summed negative log-likelihood over the number of tokens in the *whole* batch.

    Parts then add up to the batch's mean, so gradient accumulation gives the gradient of the undivided batch.

    Args:
        logits: [batch, n, vocabulary]; position i predicts label i.
        labels: [batch, n].
        num_tokens: Predicted tokens of the whole batch; None if this part is all of it.
    """
    if num_tokens is None:
        num_tokens = labels.ne(IGNORED).sum()
    return token_nll(logits, labels).sum() / num_tokens


@torch.no_grad()
def validation_nll(model: nn.Module, batch: Batch, end_of_text_id: int) -> tuple[float, int, float, int]:
    """Sums over one batch: nll of all predicted tokens, their number, nll of the text's tokens (without end-of-text), their number."""
    labels = batch["labels"]
    nll = token_nll(model(**{name: value for name, value in batch.items() if name != "labels"}).logits, labels).double()
    is_text = (labels != end_of_text_id) & (labels != IGNORED)
    return float(nll.sum()), int(labels.ne(IGNORED).sum()), float(nll[is_text].sum()), int(is_text.sum())
