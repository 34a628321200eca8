"""Words of any script, and what the diversity metrics say of known strings."""

import pytest

from prosemill.evaluation.diversity import diversity, ends_in_cycle
from prosemill.evaluation.words import first_words, tokens, words


def test_a_word_is_a_run_of_letters_marks_and_digits() -> None:
    assert tokens("It's 5 o'clock.") == ["It", "'", "s", "5", "o", "'", "clock", "."]
    assert words("It's 5 o'clock.") == ["it", "s", "5", "o", "clock"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Москва — Ёлка", ["москва", "ёлка"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("اللغة العربية", ["اللغة", "العربية"]),
        ("中文 ok", ["中", "文", "ok"]),
        ("カナ", ["カ", "ナ"]),
        ("café", ["café"]),
        ("", []),
        ("😀 …", []),
    ],
)
def test_words_of_every_script(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_the_cut_keeps_the_spacing_and_never_invents_words() -> None:
    assert first_words(" a\n\nb  c d", 3) == " a\n\nb  c"
    assert first_words("a b", 5) == "a b"
    assert first_words("", 5) == ""


def test_distinct_counts_different_ngrams_over_all_texts() -> None:
    rates = diversity(["the cat sat", "the cat ran"])
    assert rates["distinct_1"] == 4 / 6
    assert rates["distinct_2"] == 3 / 4
    assert rates["distinct_3"] == 2 / 2


def test_repetition_weighs_every_fourgram_alike_and_stays_within_a_text() -> None:
    # 5 four-grams of which 1 came before, and 1 four-gram that is new in its own text.
    assert diversity(["a b c d a b c d", "a b c d"])["repetition_rate"] == 1 / 6


@pytest.mark.parametrize(
    ("text", "loops"),
    [
        ("start " + "no " * 8, True),
        ("no " * 7, False),
        ("he said " + "and the cat sat " * 3, True),
        ("he said " + "and the cat sat " * 3 + "and the", True),
        ("he said " + "and the cat sat " * 2, False),
        ("and the cat sat " * 3 + "then it left", False),
        ("and so on ...", False),
        ("", False),
    ],
)
def test_a_loop_is_three_copies_at_the_end(text: str, loops: bool) -> None:
    assert ends_in_cycle(tokens(text)) is loops


def test_loop_rate_is_the_share_of_texts() -> None:
    assert diversity(["no " * 9, "a b c", "d e f", "g"])["loop_rate"] == 1 / 4


def test_nothing_gives_zero() -> None:
    assert set(diversity(["", ""]).values()) == {0.0}
