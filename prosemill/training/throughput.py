"""How fast training runs, and which share of the machine's matrix-product rate it uses (MFU).

MFU, after Chowdhery et al. 2022 (PaLM, appendix B): the operations that the model needs for the tokens it saw, without recomputation,
over the time taken and the rate that this machine reaches on plain matrix products, measured at the start of the run.
"""

import time
from typing import Any

import torch
from torch import nn

from prosemill.precision import DTYPES, Arithmetic

MATRIX_SIZE = 2048
MEASURED_SECONDS = 0.5


def measure_matmul_rate(arithmetic: Arithmetic, device: torch.device) -> float:
    """Operations per second of square matrix products of 2048 in the given arithmetic (2·n³ operations each)."""
    left, right = (torch.randn(MATRIX_SIZE, MATRIX_SIZE, device=device, dtype=DTYPES[arithmetic]) for _ in range(2))
    left @ right
    _synchronize(device)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < MEASURED_SECONDS:
        left @ right
        _synchronize(device)
        count += 1
    return count * 2 * MATRIX_SIZE**3 / (time.perf_counter() - start)


def training_operations_per_token(model: nn.Module, block_size: int) -> float:
    """Operations that one token of a training step needs: 2 per weight forward, 2 for its input's gradient, 2 more if it is trained.

    Attention adds 4·length·width per layer forward and twice that backward, counted over the full block.
    """
    config: Any = model.config
    linear = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    operations = sum((6 if weight.requires_grad else 4) * weight.numel() for weight in linear)
    width = config.num_attention_heads * getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    return float(operations + 12 * config.num_hidden_layers * block_size * width)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
