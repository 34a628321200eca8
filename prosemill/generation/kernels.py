"""Matrix products in the arithmetic that serves best: weights are held as `Precision` says, hidden states go in in any floating type.

    product = prepare(matrix, "int4")
    output = product(hidden)             # [rows, in] to [rows, out], in fp32 or bf16

On a CPU every precision but fp32 gives a row the same bits whatever rows stand beside it.
"""

from collections.abc import Callable

import torch
from torch.nn.functional import layer_norm, linear, pad

from prosemill.generation import native
from prosemill.generation.layout import Matrix, Norm
from prosemill.generation.precision import Precision

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


def prepare(matrix: Matrix, precision: Precision, norm: Norm | None = None) -> Product:
    """A matrix, behind a norm if one is given, as what multiplies by it; each row, [rows, in], for itself.

    One of a shape that int4's kernel does not take is held in int8, or else in bf16.
    """
    num_out, num_in = matrix.weight.shape
    if precision == "int4" and (num_in % GROUP or num_out % 16):
        precision = "int8"
    if (library := native.load_for(precision, matrix.weight.device)) is not None:
        return native.NativeProduct(library, matrix, norm, precision)
    product, bias = _PREPARED[precision](matrix.weight.detach().float()), None if matrix.bias is None else matrix.bias.detach().float()
    read = _unchanged if norm is None else _prepare_norm(norm)
    if bias is None:
        return lambda hidden: product(read(hidden))
    return lambda hidden: product(read(hidden)).float().add_(bias)


def prepare_head(matrix: Matrix, precision: Precision, norm: Norm) -> Product:
    """`prepare` for the matrix that makes the logits, in fp32. Its weights in four bits would cost 2 % of bits per byte."""
    product = prepare(matrix, "int8" if precision == "int4" else precision, norm)
    return lambda hidden: product(hidden).float()


def _unchanged(hidden: torch.Tensor) -> torch.Tensor:
    return hidden


def _prepare_norm(norm: Norm) -> Product:
    weight, shape, epsilon = norm.weight.detach().float(), norm.weight.shape, norm.epsilon
    if norm.bias is not None:
        bias = norm.bias.detach().float()
        return lambda hidden: layer_norm(hidden, shape, weight, bias, epsilon)
    # The root of a mean of squares is a length; torch's own `rms_norm` takes twice as long on a CPU.
    scaled, shortest = weight * len(weight) ** 0.5, weight.new_tensor((len(weight) * epsilon) ** 0.5, dtype=torch.float32)
    return lambda hidden: hidden / torch.hypot(torch.linalg.vector_norm(hidden, dim=-1, keepdim=True), shortest) * scaled


def _fp32(weight: torch.Tensor) -> Product:
    whole = weight.contiguous()
    return lambda hidden: linear(hidden.float(), whole)


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
    scales = weight.abs().amax(dim=1, keepdim=True).clamp(min=TINY) / 127
    levels, rounded = torch.round(weight / scales).to(torch.int8).contiguous(), scales[:, 0].to(torch.bfloat16)
    return lambda hidden: torch._weight_int8pack_mm(hidden.bfloat16(), levels, rounded)


def _int4(weight: torch.Tensor) -> Product:
    """A scale and an offset for each `GROUP` inputs of each output."""
    num_out, num_in = weight.shape
    groups = weight.reshape(num_out, -1, GROUP)
    low, high = groups.amin(dim=-1, keepdim=True), groups.amax(dim=-1, keepdim=True)
    scales = ((high - low) / 15).clamp(min=TINY)
    levels = torch.round((groups - low) / scales).to(torch.int32).view(num_out, num_in)
    packed = torch._convert_weight_to_int4pack_for_cpu(levels, 1)
    # The kernel's weights are (level - 8) · scale + offset.
    settings = torch.cat([scales, low + 8 * scales], dim=-1).transpose(0, 1).contiguous().to(torch.bfloat16)
    return lambda hidden: torch._weight_int4pack_mm_for_cpu(hidden.bfloat16(), packed, GROUP, settings)


_PREPARED: dict[str, Callable[[torch.Tensor], Product]] = {"fp32": _fp32, "bf16": _bf16, "int8": _int8, "int4": _int4}
