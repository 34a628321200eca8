"""Self-attention of texts that are written side by side, each at its own place, and the keys and values that it looks back at.

    attention = make_attention(layout, precision="int8", num_rows=32)
    attention.reserve(100)                                 # room for texts of 100 tokens
    look = attention.step([12, 40])                        # one token each of rows 0 and 1, at these positions
    attended = attention.attend(3, mixed, look)            # of layer 3

Keys and values lie in one tensor, a row for each text, from the left: what a row's attention goes through depends on the row's own length
alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import groupby
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch.nn.functional import scaled_dot_product_attention

from prosemill.generation import native
from prosemill.generation.kernels import SMALL
from prosemill.generation.layout import Layout
from prosemill.generation.precision import Precision

BUCKET = 64
"""Room is made, and torch's attention goes through keys, in multiples of so many."""

Look = TypeVar("Look")
"""What all layers of a forward pass share: where its tokens stand, and what they see."""


def bucket(position: int) -> int:
    """Which multiple of `BUCKET` keys a token at a position goes through."""
    return position // BUCKET + 1


class Attention(ABC, Generic[Look]):
    """Of every layer, for up to `num_rows` texts."""

    needs_neighbours: ClassVar[bool]
    """Whether rows of the same `bucket` must be neighbours in a `step`."""

    def __init__(self, layout: Layout, *, num_rows: int, dtype: torch.dtype) -> None:
        self._num_heads, self._num_kv_heads, self._head_size = layout.num_heads, layout.num_kv_heads, layout.head_size
        self._parts = [(layer.attention.scale, layer.attention.window) for layer in layout.layers]
        self._num_rows, self._dtype, self._capacity = num_rows, dtype, 0
        self._device = layout.embedding.device
        self.cache = torch.empty(0, device=self._device)
        """[layers, rows, 2 · key heads, capacity, head size]: of each row its keys, then its values."""

    @abstractmethod
    def step(self, positions: Sequence[int]) -> Look:
        """For a token of each of rows 0, 1, …, at these positions."""

    @abstractmethod
    def read(self, row: int, begin: int, end: int) -> Look:
        """For the tokens of a row at positions [begin, end)."""

    @abstractmethod
    def attend(self, number: int, mixed: torch.Tensor, look: Look) -> torch.Tensor:
        """What a layer's tokens find, [tokens, heads · head size]; their own keys and values are kept.

        Args:
            number: Of the layer.
            mixed: Queries, keys and values, [tokens, (heads + 2 · key heads) · head size], fp32; it may be changed.
            look: What was made for these tokens.
        """

    def move(self, source: int, target: int, length: int) -> None:
        """Have the text of a row, of so many tokens, stand in another row, whose text is forgotten."""
        width = bucket(length) * BUCKET  # whole buckets, whatever the order within
        self.cache[:, target, :, :width] = self.cache[:, source, :, :width]

    def reserve(self, length: int) -> None:
        """Have room for texts of a length. Where there is no memory for it, all stays as it is."""
        if length <= self._capacity:
            return
        capacity = max(bucket(length - 1) * BUCKET, 2 * self._capacity)
        # Zeros, because what is masked is multiplied by 0, and must be a number for that.
        shape = (len(self._parts), self._num_rows, 2 * self._num_kv_heads, capacity, self._head_size)
        cache = torch.zeros(shape, dtype=self._dtype, device=self._device)
        if self._capacity:
            cache[:, :, :, : self._capacity] = self.cache
        self.cache, self._capacity = cache, capacity


def make_attention(layout: Layout, *, precision: Precision, num_rows: int) -> Attention[Any]:
    """The fastest attention that there is for a precision."""
    library = native.load()
    if precision != "fp32" and library is not None and layout.embedding.device.type == "cpu":
        return FusedAttention(library, layout, num_rows=num_rows)
    is_small = layout.num_heads * layout.head_size * BUCKET <= SMALL
    return TorchAttention(layout, num_rows=num_rows, dtype=torch.float32 if precision == "fp32" or is_small else torch.bfloat16)


class FusedAttention(Attention[native.Places]):
    """By `native`, each token by itself."""

    needs_neighbours = False

    def __init__(self, library: native.Library, layout: Layout, *, num_rows: int) -> None:
        super().__init__(layout, num_rows=num_rows, dtype=torch.bfloat16)
        self._attend = native.NativeAttention(library, layout)

    def step(self, positions: Sequence[int]) -> native.Places:
        return native.Places(torch.arange(len(positions)), torch.tensor(positions))

    def read(self, row: int, begin: int, end: int) -> native.Places:
        return native.Places(torch.full((end - begin,), row), torch.arange(begin, end))

    def read_texts(self, first: int, lengths: Sequence[int]) -> native.Places:
        """For whole texts of these lengths, in rows that follow each other."""
        rows = torch.arange(first, first + len(lengths)).repeat_interleave(torch.tensor(lengths))
        return native.Places(rows, torch.cat([torch.arange(length) for length in lengths]))

    def attend(self, number: int, mixed: torch.Tensor, look: native.Places) -> torch.Tensor:
        scale, window = self._parts[number]
        return self._attend(self.cache[number], mixed, look, scale=scale, window=window)


class _Group(NamedTuple):
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


class _Groups(NamedTuple):
    """What all layers share."""

    slots: torch.Tensor
    """Where each token's keys, and then its values, go in a layer's cache of [rows · 2 · key heads · capacity, head size]."""
    turn: tuple[torch.Tensor, torch.Tensor] | None
    """Cosine and sine of each token's position, [tokens, 1, 2, half the head size]; the sines of the first half are negative."""
    groups: Sequence[_Group]


class TorchAttention(Attention[_Groups]):
    """By torch's fused attention; neighbouring rows of the same bucket are attended to together."""

    needs_neighbours = True

    def __init__(self, layout: Layout, *, num_rows: int, dtype: torch.dtype) -> None:
        super().__init__(layout, num_rows=num_rows, dtype=dtype)
        self._rotary = None if layout.rotary is None else (layout.rotary[0].to(self._device), layout.rotary[1].to(self._device))
        self._distances = None if layout.distances is None else layout.distances.detach().float().to(self._device)

    def step(self, positions: Sequence[int]) -> _Groups:
        place = torch.tensor(positions, device=self._device)
        groups, begin = [], 0
        for size, members in groupby(positions, bucket):
            end = begin + len(list(members))
            groups.append(self._group(begin, end, size * BUCKET, place[begin:end, None], first=begin))
            begin = end
        assert len({group.width for group in groups}) == len(groups), "rows of the same bucket are neighbours"
        return self._look(torch.arange(len(positions), device=self._device), place, groups)

    def read(self, row: int, begin: int, end: int) -> _Groups:
        place = torch.arange(begin, end, device=self._device)
        group = self._group(row, row + 1, bucket(end - 1) * BUCKET, place[None], first=0)
        return self._look(torch.full_like(place, row), place, [group])

    def attend(self, number: int, mixed: torch.Tensor, look: _Groups) -> torch.Tensor:
        mixed = mixed.view(len(mixed), -1, self._head_size)
        if look.turn is not None:
            cosine, sine = look.turn
            num_turned = self._num_heads + self._num_kv_heads
            turned = mixed[:, :num_turned].view(-1, num_turned, 2, self._head_size // 2)
            torch.addcmul(turned * cosine, turned.flip(-2), sine, out=turned)
        mixed = mixed.to(self._dtype)
        slots = self.cache[number].view(-1, self._head_size)
        slots.index_copy_(0, look.slots, mixed[:, self._num_heads :].reshape(-1, self._head_size))
        return torch.cat([self._attend_group(number, mixed[group.tokens, : self._num_heads], group) for group in look.groups])

    def _look(self, rows: torch.Tensor, place: torch.Tensor, groups: Sequence[_Group]) -> _Groups:
        heads = torch.arange(2 * self._num_kv_heads, device=self._device)
        slots = ((rows[:, None] * len(heads) + heads) * self._capacity + place[:, None]).flatten()
        return _Groups(slots, None if self._rotary is None else _turn(self._rotary, place), groups)

    def _group(self, begin: int, end: int, width: int, place: torch.Tensor, *, first: int) -> _Group:
        """Rows [begin, end) whose tokens stand at `place`, [rows, tokens]."""
        biases = {window: self._bias(place, width, window) for window in {window for _, window in self._parts}}
        return _Group(begin, end, width, place.shape[1], first, biases)

    def _bias(self, place: torch.Tensor, width: int, window: int | None) -> torch.Tensor:
        """What is added to the scores of tokens at `place` [rows, n], [rows, 1 or key heads, n · queries of a key head, width]."""
        back = place[:, None, :, None] - torch.arange(width, device=self._device)  # [rows, 1, n, width]
        is_hidden = back < 0 if window is None else (back < 0) | (back >= window)
        bias = torch.zeros(is_hidden.shape, device=self._device).masked_fill_(is_hidden, -torch.inf)
        if self._distances is not None:
            bias = bias + self._distances[:, back[:, 0].clamp(0, self._distances.shape[1] - 1)].transpose(0, 1)
        return bias.to(self._dtype).repeat_interleave(self._num_heads // self._num_kv_heads, dim=2)

    def _attend_group(self, number: int, queries: torch.Tensor, group: _Group) -> torch.Tensor:
        """As `attend`, of [tokens, heads, head size]. The queries of a key head are taken as tokens that follow each other."""
        scale, window = self._parts[number]
        num_kv_heads, num_queries, num_tokens = self._num_kv_heads, self._num_heads // self._num_kv_heads, group.num_tokens
        split = queries.reshape(-1, num_tokens, num_kv_heads, num_queries, self._head_size).transpose(1, 2)
        cache = self.cache[number, group.begin : group.end, :, : group.width]
        attended = scaled_dot_product_attention(
            split.flatten(2, 3), cache[:, :num_kv_heads], cache[:, num_kv_heads:], attn_mask=group.biases[window], scale=scale
        )
        by_token = attended.view(-1, num_kv_heads, num_tokens, num_queries, self._head_size).transpose(1, 2)
        return by_token.reshape(queries.shape[0], -1)


def _turn(rotary: tuple[torch.Tensor, torch.Tensor], place: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    cosine, sine = (table[place][:, None].unflatten(-1, (2, -1)).clone() for table in rotary)
    sine[:, :, 0].neg_()
    return cosine, sine
