"""A model's forward pass for writing: many texts at once, each at its own place, whatever the family.

    decoder = Decoder(layout, precision="bf16", num_rows=32)
    logits = decoder.read(0, tokens, begin=0)        # a piece of row 0's prompt: [tokens, vocabulary]
    logits = decoder.step([5, 9], [12, 40])          # the last tokens of rows 0 and 1, at their positions: [2, vocabulary]

Keys and values lie in one tensor, a row for each text, from the left: what a row's attention goes through depends on the row's own length
alone. Together with products and norms that look at each row by itself, a text's logits are the same bits whatever is written beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention

from prosemill.generation.kernels import SMALL, Precision, Product, prepare, prepare_head, prepare_norm
from prosemill.generation.layout import CrossAttention, Layer, Layout

BUCKET = 64
"""Attention goes through keys in multiples of so many; neighbouring rows of the same multiple are attended to together."""


def bucket(position: int) -> int:
    """Which multiple of `BUCKET` keys a token at a position goes through."""
    return position // BUCKET + 1


@dataclass(frozen=True)
class _Cross:
    """Cross-attention's matrices, prepared."""

    scale: float
    norm: Product
    query: Product
    key_value: Product
    output: Product


@dataclass(frozen=True)
class _Products:
    """A layer's norms and matrices, prepared."""

    attention_norm: Product
    query_key_value: Product
    output: Product
    cross: _Cross | None
    feed_forward_norm: Product
    up: Product
    down: Product


@dataclass(frozen=True)
class _Group:
    """Rows [begin, end) that go through the same `width` of keys, with `num_tokens` tokens each, which begin at `first` of the batch."""

    begin: int
    end: int
    width: int
    num_tokens: int
    first: int
    biases: dict[int | None, torch.Tensor]
    """By window, what is added to the scores: [rows, 1 or key heads, tokens · queries of a key head, width]."""

    @property
    def tokens(self) -> slice:
        """Its tokens of the batch."""
        return slice(self.first, self.first + (self.end - self.begin) * self.num_tokens)


class _Batch(NamedTuple):
    """What all layers of a forward pass share."""

    slots: torch.Tensor
    """As `Decoder._slots` says."""
    turn: tuple[torch.Tensor, torch.Tensor] | None
    """Cosine and sine of each token's position, [tokens, 1, 2, half the head size]; the sines of the first half are negative."""
    groups: Sequence[_Group]


class Decoder:
    """A model, and the keys and values of the texts that it is writing."""

    def __init__(self, layout: Layout, *, precision: Precision, num_rows: int, reading: Precision | None = None) -> None:
        """Prepare a model.

        Args:
            layout: The model.
            precision: In which weights are held.
            num_rows: How many texts it writes at most.
            reading: In which they are held once more for `read`, if another is faster for many tokens at once.
        """
        self.layout, self.num_rows = layout, num_rows
        self._embedding = layout.embedding.detach().float()
        self._positions = None if layout.positions is None else layout.positions.detach().float()
        self._layers = [_prepare_layer(layer, precision) for layer in layout.layers]
        self._reading_layers = self._layers if reading in (None, precision) else [_prepare_layer(layer, reading) for layer in layout.layers]
        self._norm, self._head = prepare_norm(layout.norm), prepare_head(layout.head, precision)
        is_small = layout.num_heads * layout.head_size * BUCKET <= SMALL
        self._dtype = torch.float32 if precision == "fp32" or is_small else torch.bfloat16
        self._encoded: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in range(num_rows)]
        self._capacity = 0
        self._cache = torch.empty(0)
        self._reserve(BUCKET)

    @torch.inference_mode()
    def step(self, tokens: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
        """Logits after the last token of rows 0, 1, …, [rows, vocabulary].

        Args:
            tokens: Of each row, its last.
            positions: Where that stands. Rows of the same `bucket` must be neighbours.
        """
        self._reserve(max(positions) + 1)
        place = torch.tensor(positions)
        groups, begin = [], 0
        for size, members in groupby(positions, bucket):
            end = begin + len(list(members))
            groups.append(self._group(begin, end, size * BUCKET, place[begin:end, None], first=begin))
            begin = end
        assert len({group.width for group in groups}) == len(groups), "rows of the same bucket are neighbours"
        return self._logits(self._forward(self._layers, torch.tensor(tokens), place, torch.arange(len(tokens)), groups))

    @torch.inference_mode()
    def read(self, row: int, tokens: Sequence[int], *, begin: int, only_last: bool = True) -> torch.Tensor:
        """Read a piece of a row's text that begins at a position, and the logits after its last token or after each, [1 or n, vocabulary].

        A text's pieces must always be the same for its logits to be the same bits.
        """
        end = begin + len(tokens)
        self._reserve(end)
        place = torch.arange(begin, end)
        group = self._group(row, row + 1, bucket(end - 1) * BUCKET, place[None], first=0)
        hidden = self._forward(self._reading_layers, torch.tensor(tokens), place, torch.full_like(place, row), [group])
        return self._logits(hidden[-1:] if only_last else hidden)

    @torch.inference_mode()
    def encode(self, row: int, tokens: Sequence[int]) -> None:
        """Have an encoder read what the row's text goes on with."""
        assert self.layout.encode is not None
        hidden = self.layout.encode(torch.tensor(tokens)).float()
        heads = (len(tokens), 2, self.layout.num_heads, self.layout.head_size)
        self._encoded[row] = []
        for products in self._reading_layers:
            assert products.cross is not None
            keys, values = products.cross.key_value(hidden).view(heads).to(self._dtype).permute(1, 2, 0, 3).contiguous()
            self._encoded[row].append((keys, values))

    @torch.inference_mode()
    def move(self, source: int, target: int, length: int) -> None:
        """Have the text of a row, of so many tokens, stand in another row, whose text is forgotten."""
        self._cache[:, target, :, :length] = self._cache[:, source, :, :length]
        self._encoded[target] = self._encoded[source]

    def _reserve(self, length: int) -> None:
        """Have room for texts of a length."""
        if length <= self._capacity:
            return
        before, self._capacity = self._capacity, max(bucket(length - 1) * BUCKET, 2 * self._capacity)
        # Zeros, because what is masked is multiplied by 0, and must be a number for that.
        shape = (len(self._layers), self.num_rows, 2 * self.layout.num_kv_heads, self._capacity, self.layout.head_size)
        cache = torch.zeros(shape, dtype=self._dtype)
        if before:
            cache[:, :, :, :before] = self._cache
        self._cache = cache

    def _group(self, begin: int, end: int, width: int, place: torch.Tensor, *, first: int) -> _Group:
        """Rows [begin, end) whose tokens stand at `place`, [rows, tokens]."""
        windows = {layer.attention.window for layer in self.layout.layers}
        biases = {window: self._bias(place, width, window) for window in windows}
        return _Group(begin, end, width, place.shape[1], first, biases)

    def _bias(self, place: torch.Tensor, width: int, window: int | None) -> torch.Tensor:
        """What is added to the scores of tokens at `place` [rows, n], [rows, 1 or key heads, n · queries of a key head, width]."""
        back = place[:, None, :, None] - torch.arange(width)  # [rows, 1, n, width]
        is_hidden = back < 0 if window is None else (back < 0) | (back >= window)
        bias = torch.zeros(is_hidden.shape).masked_fill_(is_hidden, -torch.inf)
        if (distances := self.layout.distances) is not None:
            bias = bias + distances.float()[:, back[:, 0].clamp(0, distances.shape[1] - 1)].transpose(0, 1)
        return bias.to(self._dtype).repeat_interleave(self.layout.num_heads // self.layout.num_kv_heads, dim=2)

    def _forward(
        self, layers: Sequence[_Products], tokens: torch.Tensor, place: torch.Tensor, rows: torch.Tensor, groups: Sequence[_Group]
    ) -> torch.Tensor:
        """Hidden states after the last layer, [tokens, width]."""
        layout = self.layout
        hidden = self._embedding[tokens]
        if self._positions is not None:
            hidden = hidden + self._positions[place]
        batch = _Batch(self._slots(rows, place), None if layout.rotary is None else _turn(layout.rotary, place), groups)
        for number, products in enumerate(layers):
            mixed = products.query_key_value(products.attention_norm(hidden)).float().view(len(tokens), -1, layout.head_size)
            hidden += products.output(self._attend(number, mixed, batch))
            if products.cross is not None:
                hidden += self._attend_across(number, products.cross, hidden, groups)
            hidden += self._feed_forward(number, products, hidden)
        return hidden

    def _slots(self, rows: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """Where each token's keys, and then its values, go in a layer's cache of [rows · 2 · key heads · capacity, head size]."""
        heads = torch.arange(2 * self.layout.num_kv_heads)
        return ((rows[:, None] * len(heads) + heads) * self._capacity + place[:, None]).flatten()

    def _attend(self, number: int, mixed: torch.Tensor, batch: _Batch) -> torch.Tensor:
        """Self-attention of tokens whose queries, keys and values are `mixed`, [tokens, heads, head size]; [tokens, heads · head size]."""
        layout = self.layout
        if batch.turn is not None:
            cosine, sine = batch.turn
            num_turned = layout.num_heads + layout.num_kv_heads
            turned = mixed[:, :num_turned].view(-1, num_turned, 2, layout.head_size // 2)
            torch.addcmul(turned * cosine, turned.flip(-2), sine, out=turned)
        mixed = mixed.to(self._dtype)
        slots = self._cache[number].view(-1, layout.head_size)
        slots.index_copy_(0, batch.slots, mixed[:, layout.num_heads :].reshape(-1, layout.head_size))
        found = [self._attend_group(number, mixed[group.tokens, : layout.num_heads], group) for group in batch.groups]
        return found[0] if len(found) == 1 else torch.cat(found)

    def _attend_group(self, number: int, queries: torch.Tensor, group: _Group) -> torch.Tensor:
        """As `_attend`, of [tokens, heads, head size]. The queries of a key head are taken as tokens that follow each other."""
        layout, attention = self.layout, self.layout.layers[number].attention
        num_kv_heads, num_queries, num_tokens = layout.num_kv_heads, layout.num_heads // layout.num_kv_heads, group.num_tokens
        split = queries.reshape(-1, num_tokens, num_kv_heads, num_queries, layout.head_size).transpose(1, 2)
        cache = self._cache[number, group.begin : group.end, :, : group.width]
        attended = scaled_dot_product_attention(
            split.flatten(2, 3),
            cache[:, :num_kv_heads],
            cache[:, num_kv_heads:],
            attn_mask=group.biases[attention.window],
            scale=attention.scale,
        )
        by_token = attended.view(-1, num_kv_heads, num_tokens, num_queries, layout.head_size).transpose(1, 2)
        return by_token.reshape(queries.shape[0], -1)

    def _attend_across(self, number: int, cross: _Cross, hidden: torch.Tensor, groups: Sequence[_Group]) -> torch.Tensor:
        """Attention to what the encoder read for each row, row by row: they differ in length."""
        layout = self.layout
        queries = cross.query(cross.norm(hidden)).view(len(hidden), layout.num_heads, layout.head_size).to(self._dtype)
        found = []
        for group in groups:
            for row, own in enumerate(queries[group.tokens].split(group.num_tokens), group.begin):
                keys, values = self._encoded[row][number]
                found.append(scaled_dot_product_attention(own.transpose(0, 1), keys, values, scale=cross.scale).transpose(0, 1))
        return cross.output(torch.cat(found).flatten(1))

    def _feed_forward(self, number: int, products: _Products, hidden: torch.Tensor) -> torch.Tensor:
        part = self.layout.layers[number].feed_forward
        up = products.up(products.feed_forward_norm(hidden)).float()
        if part.is_gated:
            gate, up = up.chunk(2, dim=-1)
            return products.down(part.activation(gate) * up)
        return products.down(part.activation(up))

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = self._head(self._norm(hidden))
        return logits if self.layout.head_scale == 1 else logits * self.layout.head_scale


def _prepare_layer(layer: Layer, precision: Precision) -> _Products:
    return _Products(
        attention_norm=prepare_norm(layer.attention.norm),
        query_key_value=prepare(layer.attention.query_key_value, precision),
        output=prepare(layer.attention.output, precision),
        cross=None if layer.cross_attention is None else _prepare_cross(layer.cross_attention, precision),
        feed_forward_norm=prepare_norm(layer.feed_forward.norm),
        up=prepare(layer.feed_forward.up, precision),
        down=prepare(layer.feed_forward.down, precision),
    )


def _prepare_cross(layer: CrossAttention, precision: Precision) -> _Cross:
    query, key_value, output = (prepare(matrix, precision) for matrix in (layer.query, layer.key_value, layer.output))
    return _Cross(layer.scale, prepare_norm(layer.norm), query, key_value, output)


def _turn(rotary: tuple[torch.Tensor, torch.Tensor], place: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    cosine, sine = (table[place][:, None].unflatten(-1, (2, -1)).clone() for table in rotary)
    sine[:, :, 0].neg_()
    return cosine, sine
