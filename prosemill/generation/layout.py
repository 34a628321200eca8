"""What a decoding engine must know of a model: its matrices, and how they follow each other, whatever the family.

Matrices that read the same input stand together as one. Nothing is computed here, and nothing copied that could be shared.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Norm:
    """A layer norm (Ba et al. 2016), or without `bias` one by the root mean square alone (Zhang and Sennrich 2019)."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    epsilon: float


@dataclass(frozen=True)
class Matrix:
    """A linear layer."""

    weight: torch.Tensor
    """[out, in]"""
    bias: torch.Tensor | None = None
    """[out]"""


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Of the tokens to those before them."""

    norm: Norm
    query_key_value: Matrix
    """One below the other; keys and values have `Layout.num_kv_heads` heads."""
    output: Matrix
    scale: float
    """What scores are multiplied by."""
    window: int | None = None
    """Tokens that one sees, itself included; None for all before it."""


@dataclass(frozen=True, kw_only=True)
class CrossAttention:
    """Of the tokens to what an encoder read."""

    norm: Norm
    query: Matrix
    key_value: Matrix
    """One below the other, of the encoder's output."""
    output: Matrix
    scale: float


@dataclass(frozen=True, kw_only=True)
class FeedForward:
    """The part of a layer that looks at each token alone."""

    norm: Norm
    up: Matrix
    """If `is_gated`, the gate's matrix stands above it (Shazeer 2020)."""
    is_gated: bool
    activation: str
    """As transformers' `ACT2FN` calls it."""
    down: Matrix


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Each part reads what the one before it wrote and adds to it."""

    attention: Attention
    cross_attention: CrossAttention | None = None
    feed_forward: FeedForward


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A model that writes token after token."""

    embedding: torch.Tensor
    """[vocabulary, width]"""
    positions: torch.Tensor | None = None
    """Added to the embedding, [context, width]."""
    rotary: tuple[torch.Tensor, torch.Tensor] | None = None
    """Cosine and sine that turn each half of a query and a key against the other (Su et al. 2021), [context, head size]."""
    distances: torch.Tensor | None = None
    """Added to the scores by how far back a key is (Raffel et al. 2020): [heads, n]; the last holds for all that are farther."""
    layers: tuple[Layer, ...]
    norm: Norm
    head: Matrix
    head_scale: float = 1.0
    num_heads: int
    num_kv_heads: int
    head_size: int
    start: int | None = None
    """The token before the first that an encoder's decoder writes; None for a model that goes on with its prompt."""
    encode: Callable[[torch.Tensor], torch.Tensor] | None = None
    """What the encoder makes of token ids [n]: [n, width]."""


def stack(*layers: Any) -> Matrix:
    """Linear layers that read the same input, as one matrix."""
    biases = [layer.bias for layer in layers]
    return Matrix(torch.cat([layer.weight for layer in layers]), None if biases[0] is None else torch.cat(biases))


def centred(module: Any) -> Norm:
    """A layer norm."""
    return Norm(module.weight, module.bias, module.eps)


def uncentred(module: Any) -> Norm:
    """A norm by the root mean square alone."""
    return Norm(module.weight, None, module.variance_epsilon)
