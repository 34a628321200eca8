"""The loss weighs every token the same, whatever the batch was cut into, and stops at documents."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from prosemill.families.family import IGNORED
from prosemill.pretrained import load_model
from prosemill.training.loss import sum_over_tokens, validation_nll

END = 0


@pytest.mark.parametrize("num_parts", [1, 2, 8])
def test_parts_of_unequal_size_give_the_gradient_of_the_whole_batch(tiny_model: Path, num_parts: int) -> None:
    model = load_model(tiny_model)
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(1, 1024, (8, 32), generator=generator)
    labels = ids.clone()
    for row in range(8):
        labels[row, 3 * row + 4 :] = IGNORED  # the rows predict very different numbers of tokens
    num_tokens = int(labels.ne(IGNORED).sum())

    def gradient(parts: int) -> torch.Tensor:
        model.zero_grad()
        for part_ids, part_labels in zip(ids.chunk(parts), labels.chunk(parts), strict=True):
            sum_over_tokens(model(input_ids=part_ids, use_cache=False).logits, part_labels, num_tokens).backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])

    whole, parts = gradient(1), gradient(num_parts)
    assert float((whole - parts).norm() / whole.norm()) < 1e-5


def test_the_validation_of_a_uniform_model_is_the_logarithm_of_its_vocabulary() -> None:
    class Uniform(nn.Module):
        def forward(self, input_ids: torch.Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 1024))

    labels = torch.tensor([[6, END, 7, 8, IGNORED], [2, 3, 4, END, IGNORED]])
    nll, num_tokens, text_nll, num_text_tokens = validation_nll(Uniform(), {"input_ids": labels.abs(), "labels": labels}, END)
    assert (num_tokens, num_text_tokens) == (8, 6)
    assert nll == pytest.approx(8 * math.log(1024))
    assert text_nll == pytest.approx(6 * math.log(1024))
