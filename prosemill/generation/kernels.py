"""Matrix products in the arithmetic that serves best: weights are held as `Precision` says, hidden states go in in any floating type.

    product = prepare(matrix, "int4")
    output = product(hidden)             # [rows, in] to [rows, out], in fp32 or bf16

On a CPU every precision but fp32 gives a row the same bits whatever rows stand beside it.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch.nn.functional import layer_norm, linear, pad

from prosemill.generation.layout import Matrix, Norm

Precision = Literal["fp32", "bf16", "int8", "int4"]
GROUP = 32
"""Weights of a row that share a scale and an offset in int4. A model that was stored in GGUF's Q4_1 stays exactly what it was."""
WIDTH = 32
"""Of what the inputs must be a multiple in int8: torch 2.13 gives wrong numbers for others, and says nothing."""
SMALL = 16**3
"""Multiplications up to which torch does not call oneDNN for a product in bf16."""
MOST_ROWS = 32
"""For more rows, and for a single one, oneDNN adds up a product in bf16 in another order on processors with AMX."""
TINY = torch.finfo(torch.float32).tiny
"""The least scale, that of zeros."""

Product = Callable[[torch.Tensor], torch.Tensor]


def prepare(matrix: Matrix, precision: Precision) -> Product:
    """The matrix as what multiplies by it. One of a shape that int4's kernel does not take is held in int8, or else in bf16."""
    weight, bias = matrix.weight.detach().float(), None if matrix.bias is None else matrix.bias.detach().float()
    if precision == "fp32":
        whole = weight.contiguous()
        return lambda hidden: linear(hidden.float(), whole, bias)
    product = _PREPARED[precision](weight)
    return product if bias is None else lambda hidden: product(hidden).float().add_(bias)


def prepare_head(matrix: Matrix, precision: Precision) -> Product:
    """`prepare` for the matrix that makes the logits, the largest of all; they are in fp32.

    Its weights in four bits would cost 2 % of bits per byte. With weights in eight, inputs in eight bits cost 0.2 % and save more than
    half of its time, where the processor multiplies such numbers.
    """
    if precision not in ("int8", "int4") or matrix.bias is not None or not torch.cpu._is_vnni_supported():
        whole = prepare(matrix, "int8" if precision == "int4" else precision)
        return lambda hidden: whole(hidden).float()
    levels, scales = _levels(matrix.weight.detach().float())
    transposed, of_outputs = levels.t(), scales[:, 0]

    def product(hidden: torch.Tensor) -> torch.Tensor:
        of_rows = hidden.abs().amax(dim=1, keepdim=True).clamp_(min=TINY).div_(127)
        rounded = torch.round(hidden / of_rows).to(torch.int8)
        return torch._int_mm(rounded, transposed).float().mul_(of_outputs).mul_(of_rows)

    return product


def prepare_norm(norm: Norm) -> Product:
    """The norm of each row, [rows, width]."""
    weight, shape, epsilon = norm.weight.detach().float(), norm.weight.shape, norm.epsilon
    if norm.bias is not None:
        bias = norm.bias.detach().float()
        return lambda hidden: layer_norm(hidden, shape, weight, bias, epsilon)
    # The root of a mean of squares is a length; torch's own `rms_norm` takes twice as long on a CPU.
    scaled, shortest = weight * len(weight) ** 0.5, torch.tensor((len(weight) * epsilon) ** 0.5)
    return lambda hidden: hidden / torch.hypot(torch.linalg.vector_norm(hidden, dim=-1, keepdim=True), shortest) * scaled


def _bf16(weight: torch.Tensor) -> Product:
    num_out = len(weight)
    # A small matrix is made taller, or torch would multiply few rows in another way than many.
    rounded = pad(weight, (0, 0, 0, max(0, SMALL // weight.shape[1] + 1 - num_out))).to(torch.bfloat16).contiguous()

    def product(hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden.bfloat16()
        if hidden.shape[0] == 1:
            return linear(torch.cat((hidden, hidden)), rounded)[:1, :num_out]
        found = [linear(rows, rounded) for rows in hidden.split(MOST_ROWS)]
        return (found[0] if len(found) == 1 else torch.cat(found))[:, :num_out]

    return product


def _int8(weight: torch.Tensor) -> Product:
    """A scale for each output."""
    if weight.shape[1] % WIDTH:
        return _bf16(weight)
    levels, scales = _levels(weight)
    rounded = scales[:, 0].to(torch.bfloat16)
    return lambda hidden: torch._weight_int8pack_mm(hidden.bfloat16(), levels, rounded)


def _levels(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights as whole numbers of eight bits, and each row's scale, [out, 1]."""
    scales = weight.abs().amax(dim=1, keepdim=True).clamp(min=TINY) / 127
    return torch.round(weight / scales).to(torch.int8).contiguous(), scales


def _int4(weight: torch.Tensor) -> Product:
    """A scale and an offset for each `GROUP` inputs of each output."""
    num_out, num_in = weight.shape
    if num_in % GROUP or num_out % 16:
        return _int8(weight)
    groups = weight.reshape(num_out, -1, GROUP)
    low, high = groups.amin(dim=-1, keepdim=True), groups.amax(dim=-1, keepdim=True)
    scales = ((high - low) / 15).clamp(min=TINY)
    levels = torch.round((groups - low) / scales).to(torch.int32).view(num_out, num_in)
    packed = torch._convert_weight_to_int4pack_for_cpu(levels, 1)
    # The kernel's weights are (level - 8) · scale + offset.
    settings = torch.cat([scales, low + 8 * scales], dim=-1).transpose(0, 1).contiguous().to(torch.bfloat16)
    return lambda hidden: torch._weight_int4pack_mm_for_cpu(hidden.bfloat16(), packed, GROUP, settings)


_PREPARED: dict[str, Callable[[torch.Tensor], Product]] = {"bf16": _bf16, "int8": _int8, "int4": _int4}
