"""WikiText's original format: articles written as lines one after another, their words set apart by spaces (Merity et al. 2016).

    with open("wiki.valid.tokens", "rb") as lines:
        for title, text in articles(lines):
            detokenize(text.decode())

The files on disk and the hub's Parquet, where a row is a line and an empty line an empty row, are read alike. The tokenised variants write
` <unk> ` for rare words, the raw ones do not; neither of the two functions minds.
"""

import re
from collections.abc import Callable, Iterable, Iterator


def articles(lines: Iterable[bytes], check_size: Callable[[int], object] = int) -> Iterator[tuple[str, bytes]]:
    """Join lines into articles, in constant memory beside one of them.

    An article begins at a heading of the first level, ` = Title = ` between two blank lines (or the ends of the text), and keeps it. In
    the body a line of this form, such as a formula, has no blank line on both sides.

    Args:
        lines: Lines with their ends, as a file yields them, or rows of the hub's Parquet.
        check_size: Called with the bytes of the article so far; raises if they are too many.

    Yields:
        Title and text. Titles repeat, as `<unk>` stands for many of them. What comes before the first heading has the title "" (or belongs
        to the first article, if it is blank). All texts joined are the lines joined, byte for byte.
    """
    title, text = "", bytearray()
    for line, is_alone in _with_surroundings(lines):
        heading = _title(line) if is_alone else None
        if heading is not None:
            if text.strip():
                yield title, bytes(text)
                text.clear()
            title = heading
        text += line
        check_size(len(text))
    if text:
        yield title, bytes(text)


def _with_surroundings(lines: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Each line, and whether the lines before and after it are blank or missing."""
    before, line = b"", None
    for after in lines:
        if line is not None:
            yield line, not before.strip() and not after.strip()
            before = line
        line = after
    if line is not None:
        yield line, not before.strip()


def _title(line: bytes) -> str | None:
    """The title of a heading of the first level, ` = Title = `; None for any other line, as for ` = = Section = = `."""
    level, title = _heading(line.strip().decode("utf-8", errors="replace"))
    return title if level == 1 else None


def _heading(line: str) -> tuple[int, str]:
    """Level and title of a heading without outer spaces, `= = Title = =`; 0 and the line itself for any other line."""
    words = line.split(" ")
    inner = [number for number, word in enumerate(words) if word != "="]
    level = min(inner[0], len(words) - 1 - inner[-1]) if inner else 0
    return level, " ".join(words[level : len(words) - level])


RULES = [
    # Marks between characters, as in "10 @,@ 000", "1 @.@ 5" and "twenty @-@ one".
    (r" ?@([-,.])@ ?", r"\1"),
    # Decades, "the ' 70s".
    (r"(?<!\S)' (?=\d\ds\b)", "'"),
    # A pair of quotation marks belongs to what it encloses. A single mark after an s is taken for a plural's, "the players ' union".
    (r'(?<!\S)" (.+?) "(?!\S)', r'"\1"'),
    (r"(?<!\S)(?<!s )' (.+?) '(?!\S)", r"'\1'"),
    (r"(?<=s) '(?!\S)", "'"),
    # Contractions and genitives, "don 't", "it 's"; names, "O 'Neil", "coup d 'état".
    (r"(?<=[\w>]) ('(?:s|t|m|d|re|ve|ll))(?![\w'])", r"\1"),
    (r"\b([dDlLO]) '(?=\w)", r"\1'"),
    # Brackets and curved quotation marks belong to what they enclose.
    (r"([(\[{“]) ", r"\1"),
    (r" ([)\]}”])", r"\1"),
    # Punctuation belongs to what comes before it.
    (r"(?<=\S) ([,.;:!?]+)(?=[\s\"')\]}”]|$)", r"\1"),
    # Times of the day and scores, "18 : 05"; spans, "1914 – 23"; signs of the currency, percent, degrees, minutes and seconds.
    (r"(?<=\d): (?=\d\d\b)", ":"),
    (r"(?<=\d) – (?=\d)", "–"),
    (r"(?<=[$£€¥]) (?=\d)", ""),
    (r"(?<=\d) (?=%)", ""),
    (r"(?<=°) (?=[CF]\b)", ""),
    (r"(?<=\d) (?=[′″]|° \d)", ""),
    (r"(?<=[°′]) (?=\d)", ""),
    # Wikipedia writes a slash and a long dash without spaces.
    (r"(?<=\S) ([/—]) (?=\S)", r"\1"),
]
"""What `detokenize` replaces in each line, in this order: pattern and replacement."""

COMPILED = [(re.compile(pattern), replacement) for pattern, replacement in RULES]


def detokenize(text: str) -> str:
    """Write WikiText's words and marks as prose, line by line, by `RULES`.

    Spaces at the ends of lines go, and headings ` = = Title = = ` become `== Title ==`. What the tokenisation lost cannot be told from the
    text and stays: a dash between words, `R & B`, `US $5`, `<unk>`. Prose that was never tokenised stays as it is but for spaces around
    slashes and long dashes and before punctuation.
    """
    return "\n".join(map(_detokenize_line, text.split("\n")))


def _detokenize_line(line: str) -> str:
    level, words = _heading(line.strip(" "))
    for pattern, replacement in COMPILED:
        words = pattern.sub(replacement, words)
    marks = "=" * level
    return f"{marks} {words} {marks}" if level else words
