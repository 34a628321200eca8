"""The decoder writes what transformers writes, and a text's logits are the same bits whatever is written beside it."""

from dataclasses import fields, is_dataclass, replace
from typing import Any, get_args

import pytest
import torch

from prosemill.families import families
from prosemill.generation.attention import BUCKET, bucket
from prosemill.generation.decoder import CHUNK, Decoder
from prosemill.generation.kernels import GROUP, prepare
from prosemill.generation.layout import Matrix
from prosemill.generation.precision import Precision
from tests.generation.models import INVARIANT, Tiny, draw, draw_as_smollm2, need_invariance, numbers_of_threads, prompts
from tests.models import VOCABULARY

LENGTHS = [3, 20, 61, 64, 130]
NUM_STEPS = 12  # the row of 61 and that of 64 change their bucket
COMPANY = sorted([*LENGTHS, *range(1, 28)])
"""Lengths of 32 prompts."""
OTHERS = [precision for precision in get_args(Precision) if precision != "fp32"]


@pytest.fixture(scope="module", params=sorted(families()))
def tiny(request: pytest.FixtureRequest) -> Tiny:
    """A model of each family."""
    return draw(request.param)


def read_prompt(decoder: Decoder, row: int, tokens: list[int]) -> tuple[torch.Tensor, int]:
    """Logits after a prompt, and how many tokens the decoder has read."""
    if decoder.is_encoded:
        assert decoder.start is not None
        decoder.look_at(row, decoder.encode(tokens))
        tokens = [decoder.start]
    for begin in range(0, len(tokens), CHUNK):
        logits = decoder.read(row, tokens[begin : begin + CHUNK], begin=begin)
    return logits[0], len(tokens)


def decoder_of(tiny: Tiny, precision: Precision, num_rows: int) -> Decoder:
    return Decoder(tiny.family.layout(tiny.model), precision=precision, num_rows=num_rows)


def write(tiny: Tiny, decoder: Decoder, given: list[list[int]]) -> tuple[list[list[int]], list[torch.Tensor]]:
    """The likeliest tokens after each of the prompts, written together, and the logits that chose them: [NUM_STEPS + 1, vocabulary]."""
    first = [read_prompt(decoder, row, tiny.prompt(prompt)) for row, prompt in enumerate(given)]
    logits = [[row] for row, _ in first]
    positions = [position for _, position in first]
    tokens = [[int(row.argmax())] for row, _ in first]
    for _ in range(NUM_STEPS):
        for row, found in enumerate(decoder.step([row[-1] for row in tokens], positions)):
            logits[row].append(found)
            tokens[row].append(int(found.argmax()))
        positions = [position + 1 for position in positions]
    return tokens, [torch.stack(row) for row in logits]


def test_greedy_text_is_that_of_generate(tiny: Tiny) -> None:
    given = prompts(LENGTHS)
    found, _ = write(tiny, decoder_of(tiny, "fp32", len(given)), given)
    assert found == [tiny.greedy(prompt, NUM_STEPS + 1) for prompt in given]
    assert len({token for row in found for token in row}) > NUM_STEPS, "the model repeats itself, which proves little"


def check_that_company_changes_no_bit(tiny: Tiny, precision: Precision, *, every: int = 1) -> None:
    """Compare the logits of rows that are read and written alone with theirs among `COMPANY`, of `every` so many rows one."""
    need_invariance(precision)
    given = prompts(COMPANY)
    _, together = write(tiny, decoder_of(tiny, precision, len(given)), given)
    decoder = decoder_of(tiny, precision, 1)
    for prompt, found in list(zip(given, together, strict=True))[::every]:
        _, [alone] = write(tiny, decoder, [prompt])
        assert torch.equal(alone, found)


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("precision", INVARIANT)
def test_logits_are_the_same_bits_alone_and_among_others(tiny: Tiny, precision: Precision) -> None:
    check_that_company_changes_no_bit(tiny, precision)


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("family", sorted(families()))
def test_attention_in_bf16_keeps_a_row_to_itself(family: str) -> None:
    need_invariance("bf16")
    tiny = draw(family, hidden_size=96)  # with the smaller models' products of scores it is in fp32
    check_that_company_changes_no_bit(tiny, "int8")


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("precision", INVARIANT)
def test_logits_of_real_layers_are_the_same_bits_alone_and_among_others(precision: Precision) -> None:
    tiny = draw_as_smollm2()
    for _ in numbers_of_threads(1, 5):
        check_that_company_changes_no_bit(tiny, precision, every=5)


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("precision", OTHERS)
def test_other_precisions_come_near_to_fp32(tiny: Tiny, precision: Precision) -> None:
    given = prompts([40])
    wanted: list[Precision] = ["fp32", precision]
    exact, found = (write(tiny, decoder_of(tiny, each, 1), given)[1][0][0] for each in wanted)
    error = float((found - exact).norm() / exact.norm())
    assert 0 < error < {"bf16": 0.1, "int8": 0.2, "int4": 0.8}[precision]


@pytest.mark.usefixtures("arithmetic")
def test_a_text_goes_on_in_another_row(tiny: Tiny) -> None:
    decoder = decoder_of(tiny, "bf16", 3)
    [prompt] = prompts([90])
    _, position = read_prompt(decoder, 2, tiny.prompt(prompt))
    decoder.move(2, 0, position)
    found = decoder.step([5], [position])
    read_prompt(decoder, 0, tiny.prompt(prompt))
    assert torch.equal(found, decoder.step([5], [position]))


def test_every_token_of_a_piece_has_logits_on_request(tiny: Tiny) -> None:
    decoder = decoder_of(tiny, "fp32", 1)
    [tokens] = prompts([BUCKET + 9])
    if decoder.is_encoded:
        decoder.look_at(0, decoder.encode(tiny.prompt(tokens)))
    found = decoder.read(0, tokens, begin=0, only_last=False)
    batch = {"input_ids": torch.tensor([tokens])}
    if decoder.is_encoded:
        batch = {"input_ids": torch.tensor([tiny.prompt(tokens)]), "decoder_input_ids": batch["input_ids"]}
    with torch.inference_mode():
        expected = tiny.model(**batch).logits[0]
    assert torch.allclose(found, expected, atol=1e-4)


def test_rows_of_one_bucket_must_be_neighbours() -> None:
    decoder = decoder_of(draw("llama"), "fp32", 3)
    with pytest.raises(AssertionError, match="neighbours"):
        decoder.step([1, 2, 3], [0, BUCKET, 1])
    assert [bucket(position) for position in (0, BUCKET - 1, BUCKET)] == [1, 1, 2]


def test_int4_keeps_weights_that_have_sixteen_levels_in_each_group() -> None:
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 16, (64, 4, GROUP), generator=generator).float()
    levels[..., 0], levels[..., 1] = 0, 15
    scales = 2.0 ** torch.randint(-8, -2, (64, 4, 1), generator=generator)  # which bf16 holds exactly
    weight = (levels * scales - 8 * scales).view(64, -1)
    product = prepare(Matrix(weight), "int4")
    identity = torch.eye(weight.shape[1])
    assert torch.equal(product(identity), weight.T)


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("precision", get_args(Precision))
def test_a_bias_is_added_and_a_width_that_does_not_fit_is_served(precision: Precision) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(24, 40, generator=generator), torch.randn(24, generator=generator)
    hidden = torch.randn(3, 40, generator=generator)
    found = prepare(Matrix(weight, bias), precision)(hidden)
    expected = hidden @ weight.T + bias
    assert found.dtype == torch.float32
    assert float((found - expected).norm() / expected.norm()) < 0.02
    assert torch.allclose(found - prepare(Matrix(weight), precision)(hidden), bias.expand(3, -1), atol=1e-5)


def elsewhere(part: Any) -> Any:
    """A layout whose tensors are on a device that computes nothing, and that takes no others."""
    if isinstance(part, torch.Tensor):
        return part.to("meta")
    if isinstance(part, tuple):
        return tuple(map(elsewhere, part))
    if is_dataclass(part) and not isinstance(part, type):
        return replace(part, **{each.name: elsewhere(getattr(part, each.name)) for each in fields(part)})
    return part


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_all_is_computed_where_the_weights_are(tiny: Tiny, precision: Precision) -> None:
    layout = tiny.family.layout(tiny.model)
    if layout.encode is not None:
        layout = replace(layout, encode=lambda tokens: torch.zeros(len(tokens), layout.embedding.shape[1], device=tokens.device))
    # Tables that are computed come from the CPU.
    decoder = Decoder(replace(elsewhere(layout), rotary=layout.rotary, distances=layout.distances), precision=precision, num_rows=3)
    for row in range(2):
        read_prompt(decoder, row, [5, 6, 7])
    decoder.move(1, 2, 3)
    logits = decoder.step([1, 2], [3, 70])
    assert (logits.device.type, logits.shape) == ("meta", (2, VOCABULARY))


def test_where_there_is_no_memory_all_stays_as_it_is(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(tiny.family.layout(tiny.model), precision="fp32", num_rows=1)
    [tokens] = prompts([10])
    _, position = read_prompt(decoder, 0, tiny.prompt(tokens))
    expected = decoder.step([5], [position])
    with monkeypatch.context() as patch:
        patch.setattr(torch, "zeros", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("not enough memory")))
        for _ in range(2):
            with pytest.raises(RuntimeError, match="not enough memory"):
                decoder.reserve(BUCKET + 1)
    assert torch.equal(decoder.step([5], [position]), expected)
    decoder.reserve(BUCKET + 1)
    assert torch.equal(decoder.step([5], [position]), expected)
