"""Muon (Jordan et al. 2024) for the hidden matrices and AdamW for all else, as one optimizer: for training from random weights.

    optimizer = MuonAndAdamW(model, learning_rate=6e-3, adamw_learning_rate=6e-3, weight_decay=0.1)

Muon's steps are scaled to the size of AdamW's (Liu et al. 2025, "Muon is scalable for LLM training"), so that one rate serves both where
embeddings are drawn small. T5 draws its own, and its biases by distance, many times wider, and learns faster at a higher rate of AdamW.
"""

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

ADAMW_BETAS = (0.9, 0.95)


class MuonAndAdamW(torch.optim.Optimizer):
    """torch's Muon and torch's AdamW behind one optimizer's face: its groups are theirs, so one schedule drives both.

    Args:
        model: The model; weights of linear layers but the output's are Muon's.
        learning_rate: Of Muon.
        adamw_learning_rate: Of AdamW.
        weight_decay: Of both, decoupled; AdamW's spares what has less than two dimensions.
    """

    def __init__(self, model: PreTrainedModel, *, learning_rate: float, adamw_learning_rate: float, weight_decay: float) -> None:
        hidden, embeddings, vectors = _parts(model)
        groups: list[dict[str, Any]] = [{"params": embeddings}, {"params": vectors, "weight_decay": 0.0}]
        self._parts: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Muon(hidden, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(groups, lr=adamw_learning_rate, weight_decay=weight_decay, betas=ADAMW_BETAS),
        )
        super().__init__([*hidden, *embeddings, *vectors], {"lr": learning_rate, "weight_decay": weight_decay})
        self._take_groups()

    def _take_groups(self) -> None:
        self.param_groups = list(chain.from_iterable(part.param_groups for part in self._parts))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step of both."""
        assert closure is None
        for part in self._parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Both states, in order."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up both states of `state_dict`."""
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._take_groups()


def _parts(model: PreTrainedModel) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Hidden matrices, other matrices (embeddings, the output), and vectors, of what is trained."""
    outside = {id(layer.weight) for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer is not None}
    linear = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear | Conv1D)} - outside
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    hidden = [parameter for parameter in trained if id(parameter) in linear]
    embeddings = [parameter for parameter in trained if id(parameter) not in linear and parameter.ndim >= 2]
    vectors = [parameter for parameter in trained if parameter.ndim < 2]
    return hidden, embeddings, vectors
