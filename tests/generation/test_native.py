"""The native kernels: right to the last bits, and the same bits in every company."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers.activations import ACT2FN

from prosemill.families import families
from prosemill.generation import native
from prosemill.generation.attention import FusedAttention, TorchAttention
from prosemill.generation.decoder import CHUNK, Decoder
from prosemill.generation.layout import Attention, FeedForward, Layer, Layout, Matrix, Norm
from prosemill.generation.native import ACTIVATIONS, NEVER, Library, NativeLayers, NativeProduct, Pages, Places
from prosemill.generation.precision import Precision
from tests.generation.models import CONTEXT, compiles, draw, draw_as_smollm2, numbers_of_threads, prompts

SHAPES = [(960, 576), (100, 70), (16, 64), (7, 3), (48, 1536)]
NUM_ROWS = 70  # more than two tiles twice
DECODERS = [name for name, family in sorted(families().items()) if family.task == "CAUSAL_LM"]
SMOLLM2 = "SmolLM2"
HELD: tuple[Precision, ...] = ("int8", "bf16")


@pytest.fixture
def library() -> Library:
    """The compiled library."""
    found = native.load()
    assert found is not None
    return found


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rounded(weight: torch.Tensor, precision: Precision) -> torch.Tensor:
    """The weights that a product holds."""
    if precision == "bf16":
        return weight.bfloat16().float()
    scales = weight.abs().amax(dim=1, keepdim=True) / 127
    return torch.round(weight / scales) * scales


@compiles
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["plain", "root mean square", "layer norm"])
@pytest.mark.parametrize("precision", HELD)
def test_a_product_is_that_of_its_rounded_weights(library: Library, shape: tuple[int, int], kind: str, precision: Precision) -> None:
    weight, bias, hidden = random(*shape), random(shape[0], seed=1), 3 * random(5, shape[1], seed=2) + 1
    norm_weight, norm_bias = random(shape[1], seed=3), random(shape[1], seed=4)
    norms = {"plain": None, "root mean square": Norm(norm_weight, None, 1e-5), "layer norm": Norm(norm_weight, norm_bias, 1e-5)}
    expected = hidden.double()
    if kind == "root mean square":
        expected = expected / (expected.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm_weight
    if kind == "layer norm":
        expected = torch.nn.functional.layer_norm(expected, (shape[1],), norm_weight.double(), norm_bias.double(), 1e-5)
    steps = expected.abs().amax(dim=1) / (127 * 256)  # between two inputs of 16 bits; half of it is lost at most
    most = 0.5 * steps[:, None] * rounded(weight, precision).abs().sum(dim=1)
    expected = expected @ rounded(weight, precision).double().T + bias
    found = NativeProduct(library, Matrix(weight, bias), norms[kind], precision)(hidden)
    assert ((found - expected).abs() < most + 1e-5 * expected.abs().max()).all()
    assert float((found - expected).norm() / expected.norm()) < 1e-4


@compiles
def test_inputs_a_thousand_times_larger_than_the_others_leave_them_their_precision(library: Library) -> None:
    weight, hidden = random(32, 576), random(4, 576, seed=1)
    hidden[:, 5] *= 1000
    weight[:, 5] = 0
    weight[0, 5] = 1e-3  # one output sees them, a little
    found = NativeProduct(library, Matrix(weight), None, "int8")(hidden)[1:]
    expected = hidden[1:].double() @ rounded(weight, "int8").double().T
    assert float((found - expected).norm() / expected.norm()) < 0.03


@compiles
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("fewest", [1, NEVER], ids=["AMX", "VNNI"])
@pytest.mark.parametrize("precision", HELD)
def test_a_row_gets_the_same_bits_in_every_company(library: Library, shape: tuple[int, int], fewest: int, precision: Precision) -> None:
    if fewest == 1 and library.fewest_rows_of_tiles == NEVER:
        pytest.skip("this processor has no AMX")
    weight, hidden = Matrix(random(*shape)), random(NUM_ROWS, shape[1], seed=1)
    alone = NativeProduct(Library(library.functions, NEVER), weight, None, precision)
    expected = torch.cat([alone(row[None]) for row in hidden])
    product = NativeProduct(Library(library.functions, fewest), weight, None, precision)
    for begin, end in ((0, 1), (3, 5), (5, 12), (9, 26), (1, 34), (0, NUM_ROWS)):
        assert torch.equal(product(hidden[begin:end]), expected[begin:end])


@compiles
@pytest.mark.parametrize("precision", HELD)
def test_the_number_of_threads_changes_no_bit(library: Library, precision: Precision) -> None:
    product, hidden = NativeProduct(library, Matrix(random(960, 576)), None, precision), random(9, 576)
    expected = product(hidden)
    for _ in numbers_of_threads(1, 2, 5):
        assert torch.equal(product(hidden), expected)


def layout_of(family: str, activation: str | None = None) -> Layout:
    """That of SmolLM2's shapes, or of a model of a family whose heads, of 24 numbers, fill no vector; with an activation of choice."""
    tiny = draw_as_smollm2() if family == SMOLLM2 else draw(family, hidden_size=96)
    layout = tiny.family.layout(tiny.model)
    if activation is None:
        return layout
    return replace(
        layout, layers=tuple(replace(each, feed_forward=replace(each.feed_forward, activation=activation)) for each in layout.layers)
    )


@compiles
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("family", DECODERS)
def test_all_layers_in_one_call_are_those_one_by_one(family: str, activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layout, [tokens] = layout_of(family, activation), prompts([3 * CHUNK])  # more than GPT-Neo's window

    def written() -> torch.Tensor:
        decoder = Decoder(layout, precision="int8", num_rows=2)
        pieces = [decoder.read(1, tokens[begin : begin + CHUNK], begin=begin, only_last=False) for begin in range(0, len(tokens), CHUNK)]
        return torch.cat([*pieces, decoder.step([3, 5], [0, len(tokens)])])

    found = written()
    monkeypatch.setattr(NativeLayers, "takes", lambda _: False)
    expected = written()
    assert float((found - expected).norm() / expected.norm()) < 1e-3  # an input of 16 bits that is rounded to its other neighbour


@compiles
@pytest.mark.parametrize("family", [*DECODERS, SMOLLM2])
def test_texts_that_are_read_together_are_those_read_one_by_one(family: str) -> None:
    texts = prompts([CHUNK, *range(1, 30), CHUNK - 1, CHUNK])
    together, alone = (Decoder(layout_of(family), precision="int8", num_rows=2 + len(texts)) for _ in range(2))
    assert together.reads_texts
    found = together.read_texts(2, texts)
    for row, text in enumerate(texts):
        assert torch.equal(found[row], alone.read(row, text, begin=0)[0])
        together.move(2 + row, row, len(text))
    positions = [len(text) for text in texts]
    assert torch.equal(together.step([5] * len(texts), positions), alone.step([5] * len(texts), positions))


def activated(library: Library, activation: str, number: float) -> float:
    """A number through a layer that does nothing else."""
    norm, zeros = Norm(torch.ones(1), None, 1e-5), Matrix(torch.zeros(6, 1))
    attention = Attention(norm=norm, query_key_value=zeros, output=Matrix(torch.zeros(1, 2)), scale=1.0)
    up, down = Matrix(torch.zeros(1, 1), torch.tensor([number])), Matrix(torch.ones(1, 1))
    layer = Layer(attention=attention, feed_forward=FeedForward(norm=norm, up=up, is_gated=False, activation=activation, down=down))
    layout = Layout(embedding=torch.zeros(1, 1), layers=(layer,), norm=norm, head=down, num_heads=1, num_kv_heads=1, head_size=2)
    hidden = torch.zeros(1, 1)
    cache, first = torch.zeros(1, 1, 2, 64, 2, dtype=torch.bfloat16), torch.tensor([0])
    NativeLayers(library, layout, "int8")(cache, hidden, Places(first, first))
    return float(hidden)


@compiles
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_activations_are_those_of_transformers_near_zero_and_far_from_it(library: Library, activation: str) -> None:
    numbers = [-1e4, -200.0, *torch.linspace(-12, 12, 49).tolist(), 1e-3, -1e-3, 200.0, 1e4]
    found = torch.tensor([activated(library, activation, number) for number in numbers])
    assert torch.allclose(found, ACT2FN[activation](torch.tensor(numbers)), rtol=1e-4, atol=1e-6)


@compiles
@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("fewest", [1, NEVER], ids=["AMX", "VNNI"])
@pytest.mark.parametrize("precision", HELD)
def test_a_token_leaves_all_layers_with_the_same_bits_in_every_company(
    library: Library, family: str, fewest: int, precision: Precision
) -> None:
    if fewest == 1 and library.fewest_rows_of_tiles == NEVER:
        pytest.skip("this processor has no AMX")
    layout, num_rows = layout_of(family), 33
    hidden, positions = random(num_rows, layout.embedding.shape[1]), torch.arange(num_rows) * 50 % CONTEXT
    shape = (len(layout.layers), num_rows, 2 * layout.num_kv_heads, CONTEXT, layout.head_size)
    before = random(*shape, seed=1).to(torch.bfloat16)

    def passed(layers: NativeLayers, begin: int, end: int) -> torch.Tensor:
        found = hidden[begin:end].clone()
        layers(before.clone(), found, Places(torch.arange(begin, end), positions[begin:end].clone()))
        return found

    alone, together = (NativeLayers(Library(library.functions, each), layout, precision) for each in (NEVER, fewest))
    expected = torch.cat([passed(alone, row, row + 1) for row in range(num_rows)])
    for _ in numbers_of_threads(1, 2, 5):
        for begin, end in ((0, 1), (3, 5), (5, 12), (1, 18), (0, num_rows)):
            assert torch.equal(passed(together, begin, end), expected[begin:end])


def test_a_model_that_the_source_does_not_know_goes_through_torch() -> None:
    known = layout_of("llama")
    assert NativeLayers.takes(known)
    assert not NativeLayers.takes(layout_of("llama", "mish"))
    assert not NativeLayers.takes(layout_of("t5"))
    narrow = draw("llama")
    assert not NativeLayers.takes(replace(known, layers=known.layers + narrow.family.layout(narrow.model).layers))


def test_what_is_held_in_pages_lies_side_by_side_and_apart() -> None:
    pages = Pages(2**12)
    one, two, large = (pages.take(*shape).fill_(number) for number, shape in enumerate([(5, 64), (3, 64), (2**12, 2)]))
    assert two.data_ptr() == one.data_ptr() + one.numel()
    assert [int(each.sum()) for each in (one, two, large)] == [0, 3 * 64, 2 * 2**13]


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="this system has no large pages")
def test_pages_may_be_large_ones() -> None:
    """Linux gives such to private memory that asks for them, and by its defaults to no shared one."""
    taken = Pages(2**22).take(2**21)
    found = []
    for mapping in re.split(r"^(?=[0-9a-f]+-)", Path("/proc/self/smaps").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        addresses, permissions = mapping.split()[:2]
        begin, end = (int(address, 16) for address in addresses.split("-"))
        if begin <= taken.data_ptr() < end:
            found = [permissions, *mapping.partition("VmFlags:")[2].split()]
    assert found[0] == "rw-p"
    assert "hg" in found


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
