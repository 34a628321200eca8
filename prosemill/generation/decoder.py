"""A model's forward pass for writing: many texts at once, each at its own place, whatever the family.

    decoder = Decoder(layout, precision="bf16", num_rows=32)
    logits = decoder.read(0, tokens, begin=0)        # a piece of row 0's prompt: [tokens, vocabulary]
    logits = decoder.step([5, 9], [12, 40])          # the last tokens of rows 0 and 1, at their positions: [2, vocabulary]

Products and norms (`kernels`) look at each row by itself, and so does attention (`attention`): on a CPU a text's logits are the same bits
whatever is written beside it, with weights in int8 and int4, and in bf16 where the processor or `native` multiplies it; not in fp32.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from transformers.activations import ACT2FN

from prosemill.families.family import IGNORED
from prosemill.generation import native
from prosemill.generation.attention import BUCKET, FusedAttention, make_attention
from prosemill.generation.kernels import Product, prepare, prepare_head
from prosemill.generation.layout import CrossAttention, Layer, Layout
from prosemill.generation.precision import Precision

CHUNK = 64
"""Tokens of a text that are read at once, always from a multiple of it."""


@dataclass(frozen=True)
class _Cross:
    """Cross-attention's matrices, prepared."""

    scale: float
    query: Product
    key_value: Product
    output: Product


@dataclass(frozen=True)
class _Layer:
    """A layer's matrices, prepared, each behind its norm."""

    query_key_value: Product
    output: Product
    cross: _Cross | None
    up: Product
    is_gated: bool
    activation: Callable[[torch.Tensor], torch.Tensor]
    down: Product


class Decoder:
    """A model, and the keys and values of the texts that it is writing."""

    def __init__(self, layout: Layout, *, precision: Precision, num_rows: int) -> None:
        """Prepare a model.

        Args:
            layout: The model, which computes where its weights are: on a CPU, or in bf16 and fp32 on another device.
            precision: In which weights are held.
            num_rows: How many texts it writes at most.
        """
        self.num_rows, self.vocabulary_size = num_rows, len(layout.embedding)
        self.start, self.is_encoded = layout.start, layout.encode is not None
        self._encode = layout.encode
        self._device = layout.embedding.device
        self._embedding = layout.embedding.detach().float()
        self._positions = None if layout.positions is None else layout.positions.detach().float()
        library = native.load_for(precision, self._device)
        if not native.NativeLayers.takes(layout):
            library = None
        self._native = None if library is None else native.NativeLayers(library, layout, precision)
        self._layers = [] if self._native is not None else [_prepare_layer(layer, precision) for layer in layout.layers]
        self._head, self._head_scale = prepare_head(layout.head, precision, layout.norm), layout.head_scale
        self._num_heads, self._head_size = layout.num_heads, layout.head_size
        self._dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        self._encoded: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in range(num_rows)]
        self._attention = make_attention(layout, precision=precision, num_rows=num_rows)
        self.needs_neighbours = self._attention.needs_neighbours
        self.reserve(BUCKET)

    def reserve(self, length: int) -> None:
        """Have room for texts of a length. Raises `MemoryError` or `RuntimeError` if there is no memory; then all is as before."""
        self._attention.reserve(length)

    @torch.inference_mode()
    def step(self, tokens: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
        """Logits after the last token of rows 0, 1, …, [rows, vocabulary].

        Args:
            tokens: Of each row, its last.
            positions: Where that stands. If `needs_neighbours`, rows of the same `bucket` must be neighbours.
        """
        self.reserve(max(positions) + 1)
        hidden = self._embed(tokens, self._on_device(positions))
        return self._logits(self._forward(hidden, self._attention.step(positions), range(len(tokens))))

    @torch.inference_mode()
    def read(self, row: int, tokens: Sequence[int], *, begin: int, only_last: bool = True) -> torch.Tensor:
        """Read a piece of a row's text that begins at a position, and the logits after its last token or after each, [1 or n, vocabulary].

        Pieces that begin at multiples of `CHUNK` always give a text the same bits.
        """
        end = begin + len(tokens)
        self.reserve(end)
        hidden = self._embed(tokens, torch.arange(begin, end, device=self._device))
        hidden = self._forward(hidden, self._attention.read(row, begin, end), [row])
        return self._logits(hidden[-1:] if only_last else hidden)

    @property
    def reads_texts(self) -> bool:
        """Whether there is `read_texts`: where every part looks at each token by itself, however many there are."""
        return self._native is not None

    @torch.inference_mode()
    def read_texts(self, first: int, texts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Read whole texts into rows `first`, `first + 1`, …, and the logits after the last token of each, [texts, vocabulary].

        They are the same bits that `read` gives, if no text is longer than `CHUNK`.
        """
        assert isinstance(self._attention, FusedAttention)
        lengths = [len(text) for text in texts]
        self.reserve(max(lengths))
        places = self._attention.read_texts(first, lengths)
        hidden = self._forward(self._embed(list(chain.from_iterable(texts)), places.positions), places, rows=())
        return self._logits(hidden[torch.tensor(lengths).cumsum(0) - 1])

    def nll(self, row: int, tokens: Sequence[int], labels: Sequence[int], *, begin: int) -> float:
        """Read a piece as `read` does; the sum of -ln p of what its logits should predict, in nats. `IGNORED` is not scored."""
        logits = self.read(row, tokens, begin=begin, only_last=False).double()
        return float(cross_entropy(logits, self._on_device(labels), ignore_index=IGNORED, reduction="sum"))

    @torch.inference_mode()
    def encode(self, tokens: Sequence[int]) -> torch.Tensor:
        """What an encoder makes of tokens, [tokens, width]. May run in another thread than all else."""
        assert self._encode is not None
        return self._encode(self._on_device(tokens)).float()

    @torch.inference_mode()
    def look_at(self, row: int, hidden: torch.Tensor) -> None:
        """Have a row's text go on with what `encode` made, whose keys and values all its tokens look at."""
        heads = (len(hidden), 2, self._num_heads, self._head_size)
        self._encoded[row] = []
        for layer in self._layers:
            assert layer.cross is not None
            keys, values = layer.cross.key_value(hidden).view(heads).to(self._dtype).permute(1, 2, 0, 3).contiguous()
            self._encoded[row].append((keys, values))

    @torch.inference_mode()
    def move(self, source: int, target: int, length: int) -> None:
        """Have the text of a row, of so many tokens, stand in another row, whose text is forgotten."""
        self._attention.move(source, target, length)
        self._encoded[target] = self._encoded[source]

    def _embed(self, tokens: Sequence[int], place: torch.Tensor) -> torch.Tensor:
        hidden = self._embedding[self._on_device(tokens)]
        return hidden if self._positions is None else hidden + self._positions[place]

    def _on_device(self, numbers: Sequence[int]) -> torch.Tensor:
        return torch.tensor(numbers, device=self._device)

    def _forward(self, hidden: torch.Tensor, look: Any, rows: Sequence[int]) -> torch.Tensor:
        """Hidden states after the last layer, [tokens, width]. Of `rows`, which cross-attention takes, each has as many tokens."""
        if self._native is not None:
            self._native(self._attention.cache, hidden, look)
            return hidden
        for number, layer in enumerate(self._layers):
            hidden += layer.output(self._attention.attend(number, layer.query_key_value(hidden).float(), look))
            if layer.cross is not None:
                hidden += self._attend_across(number, layer.cross, hidden, rows)
            up = layer.up(hidden).float()
            if layer.is_gated:
                gate, up = up.chunk(2, dim=-1)
                hidden += layer.down(layer.activation(gate) * up)
            else:
                hidden += layer.down(layer.activation(up))
        return hidden

    def _attend_across(self, number: int, cross: _Cross, hidden: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        """Attention to what the encoder read for each row, row by row: they differ in length."""
        queries = cross.query(hidden).view(len(rows), -1, self._num_heads, self._head_size).to(self._dtype)
        found = []
        for row, own in zip(rows, queries, strict=True):
            keys, values = self._encoded[row][number]
            found.append(scaled_dot_product_attention(own.transpose(0, 1), keys, values, scale=cross.scale).transpose(0, 1))
        return cross.output(torch.cat(found).flatten(1))

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = self._head(hidden)
        return logits if self._head_scale == 1 else logits * self._head_scale


def _prepare_layer(layer: Layer, precision: Precision) -> _Layer:
    attention, feed_forward = layer.attention, layer.feed_forward
    return _Layer(
        query_key_value=prepare(attention.query_key_value, precision, attention.norm),
        output=prepare(attention.output, precision),
        cross=None if layer.cross_attention is None else _prepare_cross(layer.cross_attention, precision),
        up=prepare(feed_forward.up, precision, feed_forward.norm),
        is_gated=feed_forward.is_gated,
        activation=ACT2FN[feed_forward.activation].forward,
        down=prepare(feed_forward.down, precision),
    )


def _prepare_cross(layer: CrossAttention, precision: Precision) -> _Cross:
    return _Cross(
        scale=layer.scale,
        query=prepare(layer.query, precision, layer.norm),
        key_value=prepare(layer.key_value, precision),
        output=prepare(layer.output, precision),
    )
