"""The token-weighted loss: a sum over tokens divided by their number, whatever the batch was cut into.

    nll, predicted = token_nll(model, batch)          # sums over the batch's tokens, in nats
    loss = nll.sum() / predicted.sum()

Averaging the means of parts of unequal size would weigh tokens unequally; nothing here averages a mean.
"""

import torch
from torch import nn
from torch.nn import functional

IGNORED = -100  # a label that is not predicted


def position_ids(blocks: torch.Tensor, end_of_text_id: int) -> torch.Tensor:
    """Positions that restart at every end-of-text token, so that attention stops there.

    The end of one document is also the beginning of the next: a document's first token is predicted from the end-of-text token
    alone, exactly as the evaluation does, and the model learns to stop. transformers reads document borders off restarting positions
    when no attention mask is given.

    Args:
        blocks: Token ids, [batch, length].
        end_of_text_id: The token that ends every document.

    Returns:
        Positions, [batch, length], int64.
    """
    index = torch.arange(blocks.shape[1], device=blocks.device).expand_as(blocks)
    starts = torch.where(blocks == end_of_text_id, index, 0).cummax(dim=1).values
    return index - starts


def token_nll(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of each next token, in nats, in fp32.

    Args:
        logits: [batch, length, vocabulary]; position i predicts token i + 1.
        labels: The input's own token ids, [batch, length], or `IGNORED` for a token that is not predicted.

    Returns:
        [batch, length - 1]; zero where the label is ignored.
    """
    batch, length = labels.shape
    targets = labels[:, 1:].reshape(-1)
    nll = functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets, ignore_index=IGNORED, reduction="none")
    return nll.view(batch, length - 1)


def sum_over_tokens(logits: torch.Tensor, labels: torch.Tensor, num_tokens: torch.Tensor | int | None) -> torch.Tensor:
    """The loss of one part of a batch: its summed negative log-likelihood over the number of tokens in the *whole* batch.

    Parts then add up to the batch's mean, so gradient accumulation gives the gradient of the undivided batch.
    """
    if num_tokens is None:
        num_tokens = labels[:, 1:].ne(IGNORED).sum()
    return token_nll(logits, labels).sum() / num_tokens


@torch.no_grad()
def validation_nll(model: nn.Module, batch: dict[str, torch.Tensor], end_of_text_id: int) -> tuple[float, int, float, int]:
    """Sums over one batch: nll of all tokens, their number, nll of the text's tokens (without end-of-text), their number."""
    labels = batch["labels"]
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    nll = token_nll(model(**inputs).logits, labels).double()
    is_text = labels[:, 1:] != end_of_text_id
    return float(nll.sum()), nll.numel(), float(nll[is_text].sum()), int(is_text.sum())
