"""`native.c`, compiled at its first use and called: layers, and their parts, and draws, for AVX-512 VNNI and where there is a C compiler.

    if (library := load_for("int8", matrix.weight.device)) is not None:
        product = NativeProduct(library, matrix, norm, "int8")
        output = product(hidden)             # [rows, in] to [rows, out], fp32

What it computes is the same to the bit whatever rows stand beside each other, with any number of threads.
"""

import hashlib
import math
import mmap
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from ctypes import CDLL, Structure, byref, c_double, c_float, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from prosemill.console import say
from prosemill.errors import first_line
from prosemill.generation.layout import Layer, Layout, Matrix, Norm
from prosemill.generation.precision import Precision
from prosemill.precision import choose_arithmetic

SOURCE = Path(__file__).with_suffix(".c")
COMPILER = "gcc"  # its OpenMP is the one that torch brings along
FLAGS = ("-std=c11", "-O3", "-D_GNU_SOURCE", "-fopenmp", "-shared", "-fPIC")
NUM_OUT, NUM_IN, LANES = 32, 64, 16
"""As in the source: what outputs and inputs are filled up to, and outputs that lie side by side."""
ZERO = 128
"""The level that stands for 0."""
MOST_IN = 2**16
"""Inputs whose sum of products fits 32 bits."""
FEWEST_ROWS_OF_TILES = 5
"""For so many rows AMX is faster."""
NEVER = 2**62
REGION = 2**26
"""Bytes that are mapped at once for a model's weights."""


class _Norm(Structure):
    _fields_ = (("weight", c_void_p), ("bias", c_void_p), ("epsilon", c_float))


class _Matrix(Structure):
    _fields_ = (
        ("norm", _Norm),
        *((name, c_void_p) for name in ("levels", "scales", "numbers", "bias")),
        *((name, c_int64) for name in ("num_in", "num_out")),
    )


class _Attention(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("cache", "cosines", "sines", "distances")),
        ("scale", c_float),
        *((name, c_int64) for name in ("window", "num_heads", "num_kv_heads", "head_size", "capacity", "num_distances")),
    )


class _Places(Structure):
    _fields_ = (("rows", c_void_p), ("positions", c_void_p), ("num_tokens", c_int64))


class _Layer(Structure):
    _fields_ = (
        *((name, _Matrix) for name in ("query_key_value", "output", "up", "down")),
        ("scale", c_float),
        *((name, c_int64) for name in ("window", "is_gated", "activation")),
    )


class _Draw(Structure):
    _fields_ = (("temperature", c_float), ("top_k", c_int64), ("top_p", c_double), ("number", c_double))


@dataclass(frozen=True)
class Library:
    """The compiled functions."""

    functions: CDLL
    fewest_rows_of_tiles: int
    """From how many rows on AMX multiplies."""


@cache
def load() -> Library | None:
    """The library; None where the processor lacks the instructions, or there is no compiler, which is said."""
    if platform.machine() != "x86_64" or not torch.cpu._is_vnni_supported():
        return None
    if (compiler := shutil.which(COMPILER)) is None:
        say(f"no {COMPILER} is installed: the engine takes slower kernels; install it for the fast ones")
        return None
    try:
        functions = CDLL(str(_compile(compiler)))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = error.stderr if isinstance(error, subprocess.CalledProcessError) else error
        say(f"{SOURCE.name} does not compile, so that the engine takes slower kernels: {first_line(reason)}")
        return None
    pointer = c_void_p
    functions.product.argtypes = (pointer, c_int64, pointer, pointer, c_int64, c_int64)
    functions.attend.argtypes = (pointer, pointer, pointer, pointer, c_int64)
    functions.forward.argtypes = (pointer, c_int64, pointer, c_int64, pointer, pointer, c_int64, c_int64)
    functions.choose.argtypes = (pointer, c_int64, c_int64, pointer, pointer, c_int64)
    has_tiles = torch.cpu._is_amx_tile_supported() and functions.request_amx()
    return Library(functions, FEWEST_ROWS_OF_TILES if has_tiles else NEVER)


def load_for(precision: Precision, device: torch.device) -> Library | None:
    """The library, if it multiplies by weights in a precision: in int8, and in bf16 where the processor has no instructions for that."""
    is_ours = precision == "int8" or (precision == "bf16" and choose_arithmetic("auto", device) != "bf16")
    return load() if is_ours and device.type == "cpu" else None


def _compile(compiler: str) -> Path:
    """The library's file, which is kept for the next process. Raises `OSError` or `CalledProcessError` if it cannot be made."""
    from platformdirs import user_cache_path

    version = subprocess.run([compiler, "-v"], capture_output=True, check=True).stderr
    name = hashlib.sha256(b"".join((SOURCE.read_bytes(), version, " ".join(FLAGS).encode()))).hexdigest()
    folder = user_cache_path("prosemill")
    library = folder / f"native-{name[:16]}.so"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, scratch = tempfile.mkstemp(dir=folder, suffix=".so")
    os.close(descriptor)
    try:
        subprocess.run([compiler, *FLAGS, str(SOURCE), "-o", scratch, "-lm"], capture_output=True, text=True, check=True)
        Path(scratch).replace(library)
    finally:
        Path(scratch).unlink(missing_ok=True)
    return library


class Pages:
    """Memory handed out piece by piece, in large pages if the system has any: a step reads all weights, and faster from such."""

    def __init__(self, region: int = 0) -> None:
        """None at first.

        Args:
            region: Bytes to map at once, if more than are asked for. What is not used of them takes no memory.
        """
        self._region, self._left = region, torch.empty(0, dtype=torch.uint8)

    def take(self, *shape: int) -> torch.Tensor:
        """Bytes of a shape."""
        size = math.prod(shape)
        if size > len(self._left):
            # Private, as Linux by its defaults has no large pages for memory that is shared.
            region = mmap.mmap(-1, max(size, self._region), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            with suppress(OSError):
                region.madvise(mmap.MADV_HUGEPAGE)
            self._left = torch.frombuffer(region, dtype=torch.uint8)
        taken, self._left = self._left[:size], self._left[size:]
        return taken.view(shape)


class NativeProduct:
    """A matrix, behind a norm if one is given: in int8, whose inputs are rounded to 16 bits, or in bf16."""

    def __init__(self, library: Library, matrix: Matrix, norm: Norm | None, precision: Precision, pages: Pages | None = None) -> None:
        """Prepare a matrix.

        Args:
            library: Of the functions.
            matrix: What is multiplied by.
            norm: Of the inputs.
            precision: int8 or bf16.
            pages: Where to hold it, beside those that are read before and after it.
        """
        self._library, (self._num_out, num_in) = library, matrix.weight.shape
        assert num_in <= MOST_IN
        weight, pages = _filled(matrix.weight, NUM_OUT, NUM_IN), pages or Pages()
        levels, scales = _levels(weight, pages) if precision == "int8" else (None, None)
        numbers = _numbers(weight, pages) if precision == "bf16" else None
        bias = None if matrix.bias is None else _filled(matrix.bias, NUM_OUT)
        weights = (None, None) if norm is None else (norm.weight, norm.bias)
        of_norm = [None if each is None else each.detach().float().contiguous() for each in weights]
        self._tensors = (*of_norm, levels, scales, numbers, bias)
        norm_struct = _Norm(*map(_pointer, of_norm), 0 if norm is None else norm.epsilon)
        self.struct = _Matrix(norm_struct, *map(_pointer, (levels, scales, numbers, bias)), num_in, self._num_out)
        """As the source takes it."""

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, in] to [rows, out], both fp32."""
        hidden = hidden.float().contiguous()
        num_rows = hidden.shape[0]  # `len` takes as long as half of a small product
        out = torch.empty(num_rows, self._num_out)
        tiles, num_threads = self._library.fewest_rows_of_tiles, torch.get_num_threads()
        if not self._library.functions.product(hidden.data_ptr(), num_rows, byref(self.struct), out.data_ptr(), tiles, num_threads):
            raise MemoryError
        return out


def _levels(weight: torch.Tensor, pages: Pages) -> tuple[torch.Tensor, torch.Tensor]:
    """Levels [blocks, in / 4, LANES, 4] and scales [out] of a matrix in int8."""
    scales = weight.abs().amax(dim=1).clamp_(min=torch.finfo(torch.float32).tiny).div_(ZERO - 1)
    levels = torch.round(weight / scales[:, None]).add_(ZERO).to(torch.uint8)
    blocks = levels.view(-1, LANES, weight.shape[1] // 4, 4).transpose(1, 2)
    return pages.take(*blocks.shape).copy_(blocks), scales


def _numbers(weight: torch.Tensor, pages: Pages) -> torch.Tensor:
    """Numbers [blocks, in, LANES] of a matrix in bf16."""
    blocks = weight.to(torch.bfloat16).view(-1, LANES, weight.shape[1]).transpose(1, 2)
    return pages.take(2 * blocks.numel()).view(torch.bfloat16).view(blocks.shape).copy_(blocks)


def _filled(numbers: torch.Tensor, *steps: int) -> torch.Tensor:
    """In fp32, with zeros up to the next multiple of a step in each dimension."""
    filled = torch.zeros([-(-size // step) * step for size, step in zip(numbers.shape, steps, strict=True)])
    filled[tuple(map(slice, numbers.shape))] = numbers.detach()
    return filled


def _pointer(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


class Places(NamedTuple):
    """Where tokens stand: each one's row and position, [tokens]."""

    rows: torch.Tensor
    positions: torch.Tensor

    def struct(self) -> _Places:
        """As the source takes it, which holds no reference to the tensors."""
        return _Places(self.rows.data_ptr(), self.positions.data_ptr(), self.rows.shape[0])


class NativeAttention:
    """Self-attention over a cache in bf16, [rows, 2 · key heads, capacity, head size]: keys, then values."""

    def __init__(self, library: Library, layout: Layout) -> None:
        self._library = library
        tables = (*(layout.rotary or (None, None)), layout.distances)
        self._tables = [None if table is None else table.detach().float().contiguous() for table in tables]
        self._num_heads, self._num_kv_heads, self._head_size = layout.num_heads, layout.num_kv_heads, layout.head_size
        self._num_distances = 0 if layout.distances is None else layout.distances.shape[1]

    def struct(self, cache: torch.Tensor, *, scale: float = 1, window: int | None = None) -> _Attention:
        """As the source takes it."""
        sizes = (self._num_heads, self._num_kv_heads, self._head_size, cache.shape[-2], self._num_distances)
        return _Attention(cache.data_ptr(), *map(_pointer, self._tables), scale, window or 0, *sizes)

    def __call__(self, cache: torch.Tensor, mixed: torch.Tensor, places: Places, *, scale: float, window: int | None) -> torch.Tensor:
        """What tokens find, [tokens, heads · head size], once their own keys and values are in the cache.

        Args:
            cache: Of a layer.
            mixed: Queries, keys and values of each token, [tokens, (heads + 2 · key heads) · head size], fp32; it is changed.
            places: Where they stand.
            scale: What scores are multiplied by.
            window: Tokens that one sees, itself included; None for all before it.
        """
        assert mixed.is_contiguous()
        assert mixed.dtype == torch.float32
        out = torch.empty(mixed.shape[0], self._num_heads * self._head_size)
        attention = self.struct(cache, scale=scale, window=window)
        num_threads = torch.get_num_threads()
        if not self._library.functions.attend(byref(attention), mixed.data_ptr(), byref(places.struct()), out.data_ptr(), num_threads):
            raise MemoryError
        return out


ACTIVATIONS = {"relu": 0, "silu": 1, "swish": 1, "gelu": 2, "gelu_new": 3, "gelu_pytorch_tanh": 3}
"""By transformers' names, as in the source."""


class NativeLayers:
    """All layers of a decoder in one call, each matrix as in `NativeProduct`."""

    @staticmethod
    def takes(layout: Layout) -> bool:
        """Whether a model is of the source's kind: no encoder, a known activation, layers of one size."""
        is_known = all(layer.cross_attention is None and layer.feed_forward.activation in ACTIVATIONS for layer in layout.layers)
        return is_known and len({_shapes(layer) for layer in layout.layers}) == 1

    def __init__(self, library: Library, layout: Layout, precision: Precision) -> None:
        """Prepare them, with weights in int8 or bf16."""
        self._library, self._attention, self._precision = library, NativeAttention(library, layout), precision
        self._products: list[NativeProduct] = []
        self._pages = Pages(REGION)
        self._layers = (_Layer * len(layout.layers))(*map(self._struct, layout.layers))

    def _struct(self, layer: Layer) -> _Layer:
        attention, feed_forward = layer.attention, layer.feed_forward
        matrices = (
            (attention.query_key_value, attention.norm),
            (attention.output, None),
            (feed_forward.up, feed_forward.norm),
            (feed_forward.down, None),
        )
        products = [NativeProduct(self._library, matrix, norm, self._precision, self._pages) for matrix, norm in matrices]
        self._products += products
        activation = ACTIVATIONS[feed_forward.activation]
        structs = [product.struct for product in products]
        return _Layer(*structs, attention.scale, attention.window or 0, feed_forward.is_gated, activation)

    def __call__(self, cache: torch.Tensor, hidden: torch.Tensor, places: Places) -> None:
        """Take hidden states [tokens, width], fp32, through all layers, in their place.

        Args:
            cache: Of all layers, as `NativeAttention` takes each.
            hidden: Of the first layer.
            places: Where the tokens stand.
        """
        assert hidden.is_contiguous()
        assert hidden.dtype == torch.float32
        is_done = self._library.functions.forward(
            byref(self._layers),
            len(self._layers),
            byref(self._attention.struct(cache)),
            cache.stride(0),
            byref(places.struct()),
            hidden.data_ptr(),
            self._library.fewest_rows_of_tiles,
            torch.get_num_threads(),
        )
        if not is_done:
            raise MemoryError


def _shapes(layer: Layer) -> tuple[torch.Size, ...]:
    attention, feed_forward = layer.attention, layer.feed_forward
    return tuple(each.weight.shape for each in (attention.query_key_value, attention.output, feed_forward.up, feed_forward.down))


class Drawing(NamedTuple):
    """How a row's next token is drawn, as `sampling.Settings` says, and the number of [0, 1) that decides."""

    temperature: float
    top_k: int
    top_p: float
    number: float


def choose(library: Library, logits: torch.Tensor, drawings: Sequence[Drawing]) -> list[int | None]:
    """The next token of each row of logits [rows, vocabulary], as `sampling.choose` gives them."""
    logits = logits.float().contiguous()
    num_rows, size = logits.shape
    tokens = torch.empty(num_rows, dtype=torch.int64)
    draws = (_Draw * num_rows)(*(_Draw(*drawing) for drawing in drawings))
    if not library.functions.choose(logits.data_ptr(), num_rows, size, byref(draws), tokens.data_ptr(), torch.get_num_threads()):
        raise MemoryError
    return [token if token >= 0 else None for token in tokens.tolist()]
