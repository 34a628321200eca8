"""How fast training runs, and which share of the machine's matrix-product rate it uses (MFU).

MFU, after Chowdhery et al. 2022 (PaLM, appendix B): the operations that the model needs for the tokens it saw, without recomputation,
over the time taken and the rate that this machine reaches on plain matrix products, measured when the run is over.
"""

import time

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from prosemill.families import Batch
from prosemill.precision import DTYPES, Arithmetic

MATRIX_SIZE = 2048
MEASURED_SECONDS = 0.5


def measure_matmul_rate(arithmetic: Arithmetic, device: torch.device) -> float:
    """Operations per second of square matrix products of 2048 in the given arithmetic (2·n³ operations each)."""
    left, right = (torch.randn(MATRIX_SIZE, MATRIX_SIZE, device=device, dtype=DTYPES[arithmetic]) for _ in range(2))
    left @ right
    synchronize(device)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < MEASURED_SECONDS:
        left @ right
        synchronize(device)
        count += 1
    return count * 2 * MATRIX_SIZE**3 / (time.perf_counter() - start)


def training_operations_per_token(model: nn.Module, batch: Batch, num_tokens: int) -> float:
    """Operations that a training step needs for one token of its blocks: 2 for each multiplication, forward and backward.

    They are counted while a batch runs, frozen weights' gradients left out. The gradients that it leaves are cleared.

    Args:
        model: The model as it is trained; recomputation (gradient checkpointing) is not counted.
        batch: What `forward` takes, on the model's device, without labels.
        num_tokens: Tokens of the blocks that the batch was made of.
    """
    counter = FlopCounterMode(display=False)
    was_training = model.training
    model.eval()  # without dropout, and without recomputation
    with sdpa_kernel(SDPBackend.MATH), counter:  # the fused kernels' operations are not counted on a CPU
        model(**batch, use_cache=False).logits.sum().backward()
    model.zero_grad(set_to_none=True)
    model.train(was_training)
    return counter.get_total_flops() / num_tokens


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given, so that a clock read next tells the truth."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
