"""A streamed answer is what decoding it at once gives, in whole characters, and never shows what a stop text takes back."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from prosemill.generation.text import HALF, AnswerText
from prosemill.pretrained import added_text, load_tokenizer

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
