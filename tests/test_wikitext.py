"""WikiText's lines are joined into articles without losing a byte, and its tokenisation is undone rule by rule."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prosemill.wikitext import articles, detokenize
from tests.wikitext_files import SAMPLE, WikiText, needs_sample

LINES = [
    b" \n",
    b"\n",
    b"",
    b" = A = \n",
    b" = = B = = \n",
    b" = x + 1 = 2 = \n",
    b" = ",
    b"= = ",
    b" Prose , it 's . \n",
    b"\xff\n",
    b" = \xff = \r\n",
]


def read(*lines: bytes) -> list[tuple[str, bytes]]:
    return list(articles(lines))


def test_a_whole_file_falls_into_its_articles_and_keeps_every_byte(wikitext: WikiText) -> None:
    with wikitext.path.open("rb") as file:
        found = list(articles(file))
    assert len(found) == wikitext.num_articles
    assert b"".join(text for _, text in found) == wikitext.path.read_bytes()
    assert all(f" = {title} = ".encode() in text.splitlines()[:2] for title, text in found)


@needs_sample
def test_the_official_files_titles_are_read() -> None:
    with SAMPLE.open("rb") as file:
        assert [title for title, _ in articles(file)][:2] == ["Homarus gammarus", "Frank <unk>"]


def test_rows_of_the_hub_give_the_same_articles(wikitext: WikiText) -> None:
    with wikitext.path.open("rb") as file:
        lines = list(file)
    rows = [b"" if line.isspace() else line for line in lines]
    found = read(*rows)
    assert [title for title, _ in found] == [title for title, _ in read(*lines)]
    assert b"".join(text for _, text in found) == b"".join(rows)


@given(st.lists(st.sampled_from(LINES)))
def test_all_articles_joined_are_the_lines(lines: list[bytes]) -> None:
    found = read(*lines)
    assert b"".join(text for _, text in found) == b"".join(lines)
    assert all(title for title, _ in found[1:])
    assert all(text.strip() for _, text in found) or len(found) == 1


def test_only_a_heading_between_blank_lines_begins_an_article() -> None:
    lines = [
        b" Before \n",
        b" \n",
        b" = One = \n",
        b" \n",
        b" = = Part = = \n",
        b" \n",
        b" so that \n",
        b" = x = \n",
        b" \n",
        b" = y = \n",
        b" holds \n",
        b" \n",
        b" = Two = \n",
        b"\n",
    ]
    assert read(*lines) == [
        ("", b" Before \n \n"),
        ("One", b" = One = \n \n = = Part = = \n \n so that \n = x = \n \n = y = \n holds \n \n"),
        ("Two", b" = Two = \n\n"),
    ]


def test_a_last_line_is_a_heading_only_after_a_blank_line() -> None:
    assert [title for title, _ in articles([b" Prose \n", b" = Title = \n"])] == [""]
    assert [title for title, _ in articles([b" Prose \n", b" \n", b" = Title = \n"])] == ["", "Title"]


def test_blank_lines_before_the_first_heading_belong_to_it() -> None:
    assert read(b" \n", b" = One = \n", b" \n") == [("One", b" \n = One = \n \n")]
    assert read() == []
    assert read(b" \n") == [("", b" \n")]


def test_a_long_article_is_noticed_while_it_grows() -> None:
    sizes: list[int] = []
    list(articles([b" Prose \n", b" Prose \n", b" \n"], sizes.append))
    assert sizes == [8, 16, 18]


@pytest.mark.parametrize(
    ("tokenized", "prose"),
    [
        (" It cost 10 @,@ 000 to 12 @,@ 500 , or 1 @.@ 5 % of twenty @-@ one . \n", "It cost 10,000 to 12,500, or 1.5% of twenty-one.\n"),
        (' becoming " lobster red " on cooking ; " why ? " \n', 'becoming "lobster red" on cooking; "why?"\n'),
        (" a length of 60 cm ( 24 in ) [ note 1 ] and { so } on ", "a length of 60 cm (24 in) [note 1] and {so} on"),
        (" It 's <unk> 's , I don 't , we 'll and they 've ", "It's <unk>'s, I don't, we'll and they've"),
        (" the players ' union called ' the Bay ' in the ' 70s ", "the players' union called 'the Bay' in the '70s"),
        (" Admiral O 'Neil 's coup d 'état ", "Admiral O'Neil's coup d'état"),
        (" at 18 : 05 and 1914 – 23 , Indonesia – Malaysia ", "at 18:05 and 1914–23, Indonesia – Malaysia"),
        (" $ 2 @.@ 5 million or £ 3 , 90 ° F ( 32 ° C ) at 57 ° 53 ′ 2 ″ N ", "$2.5 million or £3, 90 °F (32 °C) at 57°53′2″ N"),
        (" and / or 60 km / h — fast ... then [ ... ] “ so ” ", "and/or 60 km/h—fast... then [...] “so”"),
        (" = = = Later @-@ day life , 1914 – 23 = = = \n \n", "=== Later-day life, 1914–23 ===\n\n"),
        (" = ... Thirteen Years Later = ", "= ... Thirteen Years Later ="),
        (" = = = ", "= = ="),
    ],
)
def test_words_and_marks_become_prose(tokenized: str, prose: str) -> None:
    assert detokenize(tokenized) == prose
    assert detokenize(prose) == prose


def test_a_second_time_changes_nothing_in_a_whole_file(wikitext: WikiText) -> None:
    prose = detokenize(wikitext.path.read_text(encoding="utf-8"))
    assert detokenize(prose) == prose
    assert not any(f"@{mark}@" in prose for mark in "-,.")
    assert " ," not in prose.replace(' ",', "")


PROSE = """She didn't know the Smiths' "old" house (built in 1905): 'Mon Repos', at 5:30 p.m.; it cost $1,000.50.
    e.g. a .NET or 'til 80's, <unk>... R&B [sic] well-known, 5% at 20 °C and 1914–23! x = y = z, if a < b."""


def test_ordinary_prose_stays() -> None:
    assert detokenize(PROSE) == "\n".join(line.strip(" ") for line in PROSE.split("\n"))


@given(st.text() | st.text(alphabet=" =\"'@,.-:s1%°" + string.ascii_letters[:3]))
def test_no_text_is_refused_and_no_line_is_lost(text: str) -> None:
    assert detokenize(text).count("\n") == text.count("\n")


@pytest.mark.parametrize(("tokenized", "prose"), [("= ", "= "), ("@-@ ", "-"), ("( ", "("), ("1 : ", "1: "), ("$ 5 ", "$5 ")])
def test_a_rule_holds_at_every_place_of_a_long_line(tokenized: str, prose: str) -> None:
    for number in (1, 50_000):
        assert detokenize(tokenized * number + "x") == prose * number + "x"
