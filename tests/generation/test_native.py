"""The native kernels: right to the last bits, and the same bits in every company."""

from pathlib import Path

import pytest
import torch

from prosemill.families import families
from prosemill.generation import native
from prosemill.generation.attention import FusedAttention, TorchAttention
from prosemill.generation.layout import Matrix, Norm
from prosemill.generation.native import NEVER, Library, NativeProduct
from tests.generation.models import compiles, draw

SHAPES = [(960, 576), (100, 70), (16, 64), (7, 3), (48, 1536)]
NUM_ROWS = 70  # more than two tiles twice


@pytest.fixture
def library() -> Library:
    """The compiled library."""
    found = native.load()
    assert found is not None
    return found


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def eight_bits(weight: torch.Tensor) -> torch.Tensor:
    """The weights that a product of 8 bits holds."""
    scales = weight.abs().amax(dim=1, keepdim=True) / 127
    return torch.round(weight / scales) * scales


@compiles
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["plain", "root mean square", "layer norm"])
def test_a_product_is_that_of_its_rounded_weights(library: Library, shape: tuple[int, int], kind: str) -> None:
    weight, bias, hidden = random(*shape), random(shape[0], seed=1), 3 * random(5, shape[1], seed=2) + 1
    norm_weight, norm_bias = random(shape[1], seed=3), random(shape[1], seed=4)
    norms = {"plain": None, "root mean square": Norm(norm_weight, None, 1e-5), "layer norm": Norm(norm_weight, norm_bias, 1e-5)}
    expected = hidden.double()
    if kind == "root mean square":
        expected = expected / (expected.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm_weight
    if kind == "layer norm":
        expected = torch.nn.functional.layer_norm(expected, (shape[1],), norm_weight.double(), norm_bias.double(), 1e-5)
    steps = expected.abs().amax(dim=1) / (127 * 256)  # between two inputs of 16 bits; half of it is lost at most
    most = 0.5 * steps[:, None] * eight_bits(weight).abs().sum(dim=1)
    expected = expected @ eight_bits(weight).double().T + bias
    found = NativeProduct(library, Matrix(weight, bias), norms[kind])(hidden)
    assert ((found - expected).abs() < most + 1e-5 * expected.abs().max()).all()
    assert float((found - expected).norm() / expected.norm()) < 1e-4


@compiles
def test_inputs_a_thousand_times_larger_than_the_others_leave_them_their_precision(library: Library) -> None:
    weight, hidden = random(32, 576), random(4, 576, seed=1)
    hidden[:, 5] *= 1000
    weight[:, 5] = 0
    weight[0, 5] = 1e-3  # one output sees them, a little
    found = NativeProduct(library, Matrix(weight), None)(hidden)[1:]
    expected = hidden[1:].double() @ eight_bits(weight).double().T
    assert float((found - expected).norm() / expected.norm()) < 0.03


@compiles
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("fewest", [1, NEVER], ids=["AMX", "VNNI"])
def test_a_row_gets_the_same_bits_in_every_company(library: Library, shape: tuple[int, int], fewest: int) -> None:
    if fewest == 1 and library.fewest_rows_of_tiles == NEVER:
        pytest.skip("this processor has no AMX")
    weight, hidden = Matrix(random(*shape)), random(NUM_ROWS, shape[1], seed=1)
    alone = NativeProduct(Library(library.functions, NEVER), weight, None)
    expected = torch.cat([alone(row[None]) for row in hidden])
    product = NativeProduct(Library(library.functions, fewest), weight, None)
    for begin, end in ((0, 1), (3, 5), (5, 12), (9, 26), (1, 34), (0, NUM_ROWS)):
        assert torch.equal(product(hidden[begin:end]), expected[begin:end])


@compiles
def test_the_number_of_threads_changes_no_bit(library: Library) -> None:
    product, hidden = NativeProduct(library, Matrix(random(960, 576)), None), random(9, 576)
    expected, before = product(hidden), torch.get_num_threads()
    try:
        for num_threads in (1, 2, 5):
            torch.set_num_threads(num_threads)
            assert torch.equal(product(hidden), expected)
    finally:
        torch.set_num_threads(before)


@compiles
@pytest.mark.parametrize("family", sorted(families()))
def test_attention_is_that_of_torch(library: Library, family: str) -> None:
    tiny = draw(family, hidden_size=96)  # heads of 24 numbers, which fill no vector
    layout = tiny.family.layout(tiny.model)
    ours = FusedAttention(library, layout, num_rows=3)
    theirs = TorchAttention(layout, num_rows=3, dtype=torch.float32)
    for attention in (ours, theirs):
        attention.reserve(200)
    width = (layout.num_heads + 2 * layout.num_kv_heads) * layout.head_size
    for number in range(len(layout.layers)):
        for row, length in enumerate((130, 65, 3)):
            mixed = random(length, width, seed=row)
            found = ours.attend(number, mixed.clone(), ours.read(row, 0, length))
            expected = theirs.attend(number, mixed.clone(), theirs.read(row, 0, length))
            assert float((found - expected).norm() / expected.norm()) < 0.01  # keys and values of bf16
        ours.move(0, 2, 130)
        theirs.move(0, 2, 130)
        mixed, positions = random(3, width, seed=9), [130, 65, 130]
        found = ours.attend(number, mixed.clone(), ours.step(positions))
        expected = torch.cat(
            [theirs.attend(number, mixed[row : row + 1].clone(), theirs.read(row, at, at + 1)) for row, at in enumerate(positions)]
        )
        assert float((found - expected).norm() / expected.norm()) < 0.01
        assert torch.equal(found[0], ours.attend(number, mixed[:1].clone(), ours.step([130]))[0])


def test_without_a_compiler_there_is_a_line_and_a_slower_way(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    monkeypatch.setenv("PATH", "")
    assert native.load.__wrapped__() is None
    assert "gcc" in capfd.readouterr().err


def test_a_compiler_that_fails_is_named_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    compiler = tmp_path / native.COMPILER
    compiler.write_text('#!/bin/sh\n[ "$1" = -v ] || { echo no room >&2; exit 1; }\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert native.load.__wrapped__() is None
    assert "no room" in capfd.readouterr().err
    assert list((tmp_path / "cache" / "prosemill").iterdir()) == [], "nothing half done stays"


@compiles
def test_what_was_compiled_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert native.load.__wrapped__() is not None
    [library] = (tmp_path / "prosemill").iterdir()
    before = library.stat()
    assert native.load.__wrapped__() is not None
    assert library.stat() == before
