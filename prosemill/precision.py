"""Which device and which arithmetic: `auto` picks what the hardware is good at.

Weights that are trained stay in fp32; bf16 and fp16 are the arithmetic of the matrix products, by autocast.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Literal

import torch

from prosemill.errors import ProsemillError

Arithmetic = Literal["bf16", "fp16", "fp32"]
DTYPES: dict[Arithmetic, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def choose_device() -> torch.device:
    """The first CUDA device where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_arithmetic(precision: Literal["auto", "bf16", "fp16", "fp32"], device: torch.device) -> Arithmetic:
    """Resolve `auto`, and refuse what the device cannot do.

    Returns:
        bf16 on a GPU of compute capability 8 or a CPU with AVX512-BF16 or AMX, fp16 on older GPUs, else fp32.

    Raises:
        ProsemillError: fp16 on a CPU, where gradients would underflow without loss scaling.
    """
    if precision == "auto":
        if device.type == "cuda":
            return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
        return "bf16" if _cpu_multiplies_bf16() else "fp32"
    if precision == "fp16" and device.type == "cpu":
        raise ProsemillError("`precision`: fp16 needs a GPU; set bf16, fp32 or auto in params.yaml")
    return precision


def autocast(arithmetic: Arithmetic, device: torch.device) -> AbstractContextManager[object]:
    """A context in which matrix products run in the given arithmetic."""
    if arithmetic == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[arithmetic])


@cache
def _cpu_multiplies_bf16() -> bool:
    """Whether the CPU multiplies bf16 in hardware; emulated bf16 is slower than fp32."""
    flags = Path("/proc/cpuinfo")
    if not flags.exists():
        return False
    return bool({"avx512_bf16", "amx_bf16"} & set(flags.read_text(encoding="utf-8", errors="replace").split()))
