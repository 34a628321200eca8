"""A streamed answer is what decoding it at once gives, in whole characters, and never shows what a stop text takes back."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prosemill.generation.text import HALF, AnswerText
from prosemill.pretrained import added_text, load_tokenizer

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = ["▁the", "▁of", *"▁thisory"]
SKIPPED = "<extra_id_0>"
TEXT = "naïve – 東京 🏔️ and so on\n\n  twice   spaced, 𝔘𝔫𝔦"


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> PreTrainedTokenizerFast:
    return load_tokenizer(tiny_model)


def pieces(tokenizer: PreTrainedTokenizerFast, prompt: list[int], tokens: list[int], stop: tuple[str, ...] = ()) -> list[str]:
    """What is shown with each token, and at the end."""
    text, shown = AnswerText(tokenizer, prompt, stop), []
    for token in tokens:
        shown.append(text.add(token))
        if text.is_stopped:
            break
    return [*shown, text.finish()]


@pytest.mark.parametrize("length", [0, 1, 3, 20])
def test_pieces_are_the_text_and_no_half_character_is_shown(tokenizer: PreTrainedTokenizerFast, length: int) -> None:
    tokens = tokenizer.encode(TEXT, add_special_tokens=False)
    shown = pieces(tokenizer, tokens[:length], tokens[length:])
    assert "".join(shown) == added_text(tokenizer, tokens[:length], tokens[length:])
    assert not any(HALF in piece for piece in shown[:-1])
    assert sum(bool(piece) for piece in shown) > 10, "it comes bit by bit"


@settings(deadline=None, max_examples=200)
@given(text=st.text(min_size=1, max_size=60) | st.text(f"{HALF}a–🏔", max_size=20), length=st.integers(0, 5))
def test_any_text_comes_whole(tokenizer: PreTrainedTokenizerFast, text: str, length: int) -> None:
    tokens = tokenizer.encode(text, add_special_tokens=False)
    prompt = tokenizer.encode("The history of "[: 3 * length], add_special_tokens=False)
    assert "".join(pieces(tokenizer, prompt, tokens)) == text


@settings(deadline=None, max_examples=200)
@given(text=st.text("ab\n", min_size=1, max_size=40), stop=st.lists(st.text("ab\n", min_size=1, max_size=4), min_size=1, max_size=3))
def test_nothing_of_a_stop_text_is_shown(tokenizer: PreTrainedTokenizerFast, text: str, stop: list[str]) -> None:
    tokens = [tokenizer.encode(each, add_special_tokens=False)[0] for each in text]
    first = min([(text.find(each) + len(each), text.find(each)) for each in stop if each in text], default=(0, len(text)))
    expected = text[: first[1]]
    shown = pieces(tokenizer, [], tokens, tuple(stop))
    assert "".join(shown) == expected
    whole = tokenizer.encode(text, add_special_tokens=False)
    assert "".join(pieces(tokenizer, [], whole, tuple(stop))) == expected, "however it is cut into tokens"
    so_far = ""
    for piece in shown:
        so_far += piece
        assert expected.startswith(so_far), "what was shown is never taken back"


def test_bytes_that_are_no_character_do_not_hold_the_text_back_for_ever(tokenizer: PreTrainedTokenizerFast) -> None:
    byte = tokenizer.encode("–", add_special_tokens=False)[-1]  # the rest of a character
    assert tokenizer.decode([byte]) == HALF
    shown = pieces(tokenizer, [], [byte] * 20)
    assert any(shown[:-1])
    assert set("".join(shown)) == {HALF}


def of_t5() -> Tokenizer:
    """Words by their likelihood."""
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), *((token, -9.0) for token in (*BYTES, *WORDS))], unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return tokenizer


def of_tinyllama() -> Tokenizer:
    """Letters, of which a space is one."""
    vocabulary = {token: number for number, token in enumerate(["<unk>", *BYTES, *WORDS])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    space = decoders.Replace("▁", " ")
    tokenizer.decoder = decoders.Sequence([space, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return tokenizer


@pytest.fixture(scope="module", params=[of_t5, of_tinyllama])
def with_bytes(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    """A tokenizer that marks spaces, as T5's and TinyLlama's, and writes what it has no token for in UTF-8, byte after byte."""
    special = {"unk_token": "<unk>", "additional_special_tokens": [SKIPPED]}
    return PreTrainedTokenizerFast(tokenizer_object=request.param(), **special)


def cut(tokenizer: PreTrainedTokenizerFast, begins: str, goes_on: str) -> tuple[list[int], list[int]]:
    """The tokens of a text's beginning, and those after it."""
    prompt, whole = (tokenizer.encode(text, add_special_tokens=False) for text in (begins, begins + goes_on))
    assert whole[: len(prompt)] == prompt
    return prompt, whole[len(prompt) :]


@pytest.mark.parametrize(
    ("begins", "goes_on"),
    [
        ("", "the history of this"),
        ("the history", " of this"),
        ("the", " é of 東 so 🏔 this – so"),
        ("the", " 東京都 of 🏔️"),
        ("東京都", "東 of this"),
    ],
)
def test_words_bring_their_spaces_and_bytes_come_as_whole_characters(
    with_bytes: PreTrainedTokenizerFast, begins: str, goes_on: str
) -> None:
    shown = pieces(with_bytes, *cut(with_bytes, begins, goes_on))
    assert "".join(shown) == goes_on
    assert max(map(len, shown)) <= len(" the"), "it comes bit by bit"


@settings(deadline=None, max_examples=200)
@given(begins=st.text("his é–東🏔\n", max_size=12), goes_on=st.text("his é–東🏔\n", min_size=1, max_size=30))
def test_words_and_bytes_come_whole_in_any_order(with_bytes: PreTrainedTokenizerFast, begins: str, goes_on: str) -> None:
    prompt, tokens = cut(with_bytes, begins, goes_on)
    shown = pieces(with_bytes, prompt, tokens)
    assert "".join(shown) == added_text(with_bytes, prompt, tokens)
    assert not any(HALF in piece for piece in shown)


def test_a_token_that_is_not_shown_takes_no_space_with_it(with_bytes: PreTrainedTokenizerFast) -> None:
    prompt, tokens = cut(with_bytes, "the", " of")
    skipped, _ = cut(with_bytes, SKIPPED, "")
    assert len(skipped) == 1
    assert "".join(pieces(with_bytes, prompt, [*skipped, *tokens])) == " of"
    assert "".join(pieces(with_bytes, [], [*prompt, *skipped, *tokens])) == "the of"


def test_bytes_that_are_no_character_are_shown_behind_one_in_bytes(with_bytes: PreTrainedTokenizerFast) -> None:
    character, _ = cut(with_bytes, "東", "")
    shown = pieces(with_bytes, [], [*character, *character[-1:] * 20])
    assert any(HALF in piece for piece in shown[:-1])
    assert {*"".join(shown)} == {"東", HALF}
