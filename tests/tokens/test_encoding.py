"""Encoding by words gives exactly the ids that the library gives for the whole text, or is not used."""

import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from prosemill.end_of_text import END_OF_TEXT, choose_end_of_text
from prosemill.errors import ProsemillError
from prosemill.tokens import encoding
from prosemill.tokens.encoding import (
    PARTS,
    Encoder,
    is_local_to_words,
    load_tokenizer,
    vocabulary_size,
)
from tests.tokens.conftest import KINDS

MIXED = " ".join([*list(KINDS.values())[:6], *list(KINDS.values())[8:]])
SPLITTERS: dict[str, Callable[[], Any]] = {
    "GPT-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "SmolLM2": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "digits together": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=False), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
}


def train_tokenizer(splitter: Any, texts: list[str]) -> Tokenizer:
    """A byte-level BPE tokenizer with merges in many scripts and in white space."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=2000, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([*texts, *[MIXED] * 5, " \n \n\n\t  \r\n   " * 20], trainer)
    return tokenizer


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, prose: list[str]) -> dict[str, Path]:
    """A tokenizer folder for each way to split."""
    found = {}
    for name, splitter in SPLITTERS.items():
        found[name] = tmp_path_factory.mktemp("tokenizer")
        train_tokenizer(splitter(), prose[:20]).save(str(found[name] / "tokenizer.json"))
    return found


def whole(tokenizer: Tokenizer, text: str) -> bytes:
    """The library's ids of the whole text."""
    return np.array(tokenizer.encode(text, add_special_tokens=False).ids, "<u2").tobytes()


def test_long_texts_are_cut_where_parts_begin(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, encoder = load_tokenizer(folders["GPT-2"]), Encoder.open(folders["GPT-2"], end_of_text=0)

    def check(text: str, window: int) -> None:
        monkeypatch.setattr(encoding, "WINDOW", window)
        assert encoder.encode(text) == whole(tokenizer, text)
        windows = list(encoding._windows(text))
        assert "".join(windows) == text
        assert [part for some in windows for part in PARTS.findall(some)] == PARTS.findall(text)

    settings(max_examples=300, deadline=None)(given(ODD_TEXT, st.integers(1, 20))(check))()
    # What is drawn seldom has runs of white space in a text of several windows.
    for window in range(1, 8):
        check("ab      c \n\n\t\n d  e" * 3, window)


def pieces_of(tokenizer: Tokenizer, text: str) -> list[str]:
    """What the library splits the text into before it merges bytes."""
    return [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


ODD_TEXT = st.text(
    st.one_of(
        st.sampled_from(" " * 6 + "\n\n\t\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2003\u2028\u202f\u3000\u180e\u200b\ufeff"),
        st.sampled_from("aabts'’éß中٣1²½Ⅷ.,!_-<|>\0\u0301😀\u200d"),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=40,
)


@pytest.mark.parametrize("name", SPLITTERS)
def test_ids_are_the_librarys(folders: dict[str, Path], name: str) -> None:
    tokenizer, encoder = load_tokenizer(folders[name]), Encoder.open(folders[name], end_of_text=0)
    assert encoder._ids_of is not None

    @settings(max_examples=500, deadline=None)
    @given(ODD_TEXT)
    def same(text: str) -> None:
        assert encoder.encode(text) == whole(tokenizer, text)
        parts = PARTS.findall(text)
        assert "".join(parts) == text
        assert [piece for part in parts for piece in pieces_of(tokenizer, part)] == pieces_of(tokenizer, text)

    same()
    for text in KINDS.values():
        same.hypothesis.inner_test(text)  # type: ignore[attr-defined]


def test_python_and_library_agree_on_white_space(folders: dict[str, Path]) -> None:
    """After a character that is no white space to Python, a new piece must begin at the first of two spaces: none to the library either."""
    splitter = load_tokenizer(folders["GPT-2"]).pre_tokenizer
    every = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) not in ("Cs", "Co")]
    characters = [c for c in every if not c.isspace() and (ord(c) < 1 << 16 or unicodedata.category(c) != "Cn")]
    assert len(characters) > 140_000
    for first in range(0, len(characters), 4096):
        some = characters[first : first + 4096]
        begins = {begin for _, (begin, _) in splitter.pre_tokenize_str("".join(f"a{c}  " for c in some))}
        assert all(4 * index + 2 in begins for index in range(len(some)))


def changed(folder: Path, change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    spec: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    change(spec)
    return spec


REFUSED: dict[str, Callable[[dict[str, Any]], None]] = {
    "prefix space": lambda spec: spec["pre_tokenizer"].update(add_prefix_space=True),
    "no pattern": lambda spec: spec["pre_tokenizer"].update(use_regex=False),
    "no pre-tokenizer": lambda spec: spec.update(pre_tokenizer=None),
    "another pre-tokenizer": lambda spec: spec.update(pre_tokenizer={"type": "Whitespace"}),
    "another step": lambda spec: spec.update(
        pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}, spec["pre_tokenizer"]]}
    ),
    "normaliser": lambda spec: spec.update(normalizer={"type": "NFKC"}),
    "dropout": lambda spec: spec["model"].update(dropout=0.1),
    "another model": lambda spec: spec["model"].update(type="Unigram"),
    "no type": lambda spec: spec["model"].pop("type"),
    "added token": lambda spec: spec["added_tokens"].append({**spec["added_tokens"][0], "content": "a b", "special": False}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_tokenizers_are_left_to_the_library(folders: dict[str, Path], name: str) -> None:
    assert is_local_to_words(changed(folders["GPT-2"], lambda _: None))
    assert not is_local_to_words(changed(folders["GPT-2"], REFUSED[name]))


def save(tokenizer: Tokenizer, folder: Path) -> Path:
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_a_token_with_a_space_would_break_words(tmp_path: Path, prose: list[str]) -> None:
    tokenizer = train_tokenizer(SPLITTERS["GPT-2"](), prose[:5])
    tokenizer.add_tokens([AddedToken("New York", normalized=False)])
    encoder = Encoder.open(save(tokenizer, tmp_path), end_of_text=0)
    assert encoder.encode("in New York now") == whole(tokenizer, "in New York now")
    assert tokenizer.token_to_id("New York") in np.frombuffer(encoder.encode("in New York now"), "<u2")


def test_other_patterns_give_the_librarys_ids(tmp_path: Path, prose: list[str]) -> None:
    llama3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    splitter = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(llama3), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer = train_tokenizer(splitter, prose[:5])
    encoder = Encoder.open(save(tokenizer, tmp_path), end_of_text=0)
    assert encoder._ids_of is None
    tokenizer.encode_special_tokens = True
    for kind, text in KINDS.items():
        assert encoder.encode(text) == whole(tokenizer, text), kind


def test_truncation_and_padding_of_the_folder_are_ignored(tmp_path: Path, prose: list[str]) -> None:
    tokenizer = train_tokenizer(SPLITTERS["GPT-2"](), prose[:5])
    expected = whole(tokenizer, prose[0])
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=10_000)
    for normalizer in (None, normalizers.NFC()):  # by words, and whole
        tokenizer.normalizer = normalizer
        assert Encoder.open(save(tokenizer, tmp_path), end_of_text=0).encode(prose[0]) == expected


def test_names_of_special_tokens_are_ordinary_text(tiny_model: Path) -> None:
    encoder = Encoder.open(tiny_model, end_of_text=0)
    ids = encoder.encode(KINDS["special tokens"])
    assert 0 not in np.frombuffer(ids, "<u2")
    assert encoder.decode(ids) == KINDS["special tokens"]


def test_memory_of_words_is_bounded(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "MAX_WORDS", 10)
    tokenizer, encoder = load_tokenizer(tiny_model), Encoder.open(tiny_model, end_of_text=0)
    for number in range(100):
        text = f"word {number} {'x' * 100}"
        assert encoder.encode(text) == whole(tokenizer, text)
        assert encoder._ids_of is not None
        assert len(encoder._ids_of) <= 10
        assert max(map(len, encoder._ids_of), default=0) <= encoding.MAX_WORD_CHARACTERS


def test_wide_ids_need_a_wide_type(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "low": 1, "high": 70_000}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    encoder = Encoder.open(save(tokenizer, tmp_path), end_of_text=5)
    assert vocabulary_size(load_tokenizer(tmp_path)) == 70_001
    assert np.frombuffer(encoder.encode("low high low"), "<u4").tolist() == [1, 70_000, 1]


def test_an_ordinary_word_cannot_end_the_text(tiny_model: Path) -> None:
    token = load_tokenizer(tiny_model).token_to_id("a")
    assert token is not None
    encoder = Encoder.open(tiny_model, end_of_text=token)
    with pytest.raises(ProsemillError, match=r"the token that ends a text, 'a', also occurs inside documents: choose"):
        encoder.encode("b.a")


@pytest.mark.parametrize(
    ("vocabulary", "own", "expected"),
    [({END_OF_TEXT: 3, "</s>": 1}, "</s>", 3), ({END_OF_TEXT: 3}, None, 3), ({"</s>": 1}, "</s>", 1)],
)
def test_end_of_text_is_chosen(vocabulary: dict[str, int], own: str | None, expected: int) -> None:
    assert choose_end_of_text(vocabulary, own) == expected


@pytest.mark.parametrize("own", [None, "</s>"])
def test_a_tokenizer_without_an_end_of_text_is_one_line(own: str | None) -> None:
    with pytest.raises(ProsemillError, match=r"no token that ends a text .*: choose another model"):
        choose_end_of_text({"a": 0}, own)


@pytest.mark.parametrize(("content", "said"), [(None, "is missing"), ("{", "is not a tokenizer"), ("{}", "is not a tokenizer")])
def test_bad_tokenizer_is_one_line(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ProsemillError, match=f"{re.escape(str(tmp_path))}/tokenizer.json {said}.*dvc repro download"):
        load_tokenizer(tmp_path)
