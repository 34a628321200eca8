"""A batch's parts, shared out among the processes such that their number changes nothing: neither data, nor dropout, nor the gradient.

    parts = Parts(num_blocks, part_size=2, seed=0)  # part p of a batch is computed by process p modulo their number
    seed_part(0, step=17, part=2)                   # before part 2 of a step is computed
    gradient = GradientInOrder(model)
    gradient.add()                                  # after each process has computed one
    gradient.finish()                               # the model has the gradient of the batch

A floating-point sum depends on its order, and a reduction over processes has an order of its own. So the parts' gradients are added here
in the order of the parts, as one process adds them: each process adds up one slice of all weights, and in the end all get all slices. That
moves as much as a reduction where a process computes one part of a batch, and (n + 1) / 2 times as much where it computes n.
"""

import math
from collections.abc import Iterator

import torch
from torch import distributed, nn
from torch.utils.data import Sampler

from prosemill.digests import sha256_of_value
from prosemill.training.processes import gather, num_processes, rank

BUCKET_SIZE = 1 << 23
"""Values that are sent together, 32 MiB of them in fp32; a larger weight is sent alone."""


class Parts(Sampler[list[int]]):
    """The blocks of each part that this process computes.

    An epoch's last part may be smaller. Where there is none left for a process, it gets an empty one: all take equally many turns.

    Args:
        num_blocks: Blocks of an epoch.
        part_size: Blocks of a part.
        seed: Of the blocks' order, which is another in each epoch; None keeps them as they are.

    Attributes:
        epoch: Number of the epoch that comes next.
    """

    def __init__(self, num_blocks: int, *, part_size: int, seed: int | None = None) -> None:
        self._num_blocks, self._part_size, self._seed = num_blocks, part_size, seed
        self.epoch = 0

    def __len__(self) -> int:
        """Turns of each process in an epoch."""
        return math.ceil(self._num_blocks / (self._part_size * num_processes()))

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.arange(self._num_blocks)
        if self._seed is not None:
            order = torch.randperm(self._num_blocks, generator=torch.Generator().manual_seed(self._seed + self.epoch))
        for turn in range(len(self)):
            start = (turn * num_processes() + rank()) * self._part_size
            yield order[start : start + self._part_size].tolist()


def in_order(values: torch.Tensor) -> torch.Tensor:
    """What all processes found for their parts, [turn, ...], in the order of the parts, [part, ...]. All must call it."""
    return gather(values).transpose(0, 1).flatten(0, 1)


def seed_part(seed: int, step: int, part: int) -> None:
    """Seed what draws dropout, so that it is the same whichever process computes the part, and whatever it computed before."""
    torch.manual_seed(int(sha256_of_value([seed, step, part])[:16], 16))


class GradientInOrder:
    """Adds up the parts' gradients of a batch over all processes, bit for bit as one process does.

    Args:
        model: Its trained parameters have one dtype, and get a gradient in every part.
    """

    def __init__(self, model: nn.Module) -> None:
        self._buckets = _buckets([parameter for parameter in model.parameters() if parameter.requires_grad])
        self._sums: list[torch.Tensor] = []  # of each bucket this process's slice; none before the first part

    def add(self) -> None:
        """Take up what each process has just computed, and clear the gradients. All must call it."""
        slices = [_exchange(bucket) for bucket in self._buckets]
        if not self._sums:
            self._sums, slices = [parts[0].clone() for parts in slices], [parts[1:] for parts in slices]
        for total, parts in zip(self._sums, slices, strict=True):
            for part in parts:
                total += part

    def finish(self) -> None:
        """Set the gradients of all processes to the batch's, and begin anew. All must call it."""
        for bucket, total in zip(self._buckets, self._sums, strict=True):
            whole = total.new_empty(num_processes() * len(total))
            distributed.all_gather_single(whole, total)
            sizes = [parameter.numel() for parameter in bucket]
            for parameter, values in zip(bucket, whole[: sum(sizes)].split(sizes), strict=True):
                parameter.grad = values.view_as(parameter).clone()
        self._sums = []


def _buckets(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    buckets: list[list[nn.Parameter]] = [[]]
    for parameter in parameters:
        if buckets[-1] and sum(map(torch.numel, [*buckets[-1], parameter])) > BUCKET_SIZE:
            buckets.append([])
        buckets[-1].append(parameter)
    return buckets


def _exchange(bucket: list[nn.Parameter]) -> torch.Tensor:
    """Give each process its slice of the bucket's gradients, and get the own one from each, [process, slice]. The gradients are cleared."""
    first = bucket[0]
    slice_size = math.ceil(sum(map(torch.numel, bucket)) / num_processes())
    own = torch.zeros(num_processes() * slice_size, dtype=first.dtype, device=first.device)
    start = 0
    for parameter in bucket:
        assert parameter.dtype == first.dtype
        if parameter.grad is not None:
            own[start : start + parameter.numel()] = parameter.grad.flatten()
        start += parameter.numel()
        parameter.grad = None
    received = torch.empty_like(own)
    distributed.all_to_all_single(received, own)
    return received.view(num_processes(), slice_size)
