"""Files in WikiText's format: the official validation file where it lies beside the checkout, and one that is written from other prose."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

SAMPLE = Path(__file__).parents[1] / "../shared/data/wikitext-2/wiki.valid.tokens"
needs_sample = pytest.mark.skipif(not SAMPLE.is_file(), reason=f"WikiText's validation file is missing ({SAMPLE})")


@dataclass(frozen=True)
class WikiText:
    """A file and how many articles it has."""

    path: Path
    num_articles: int


def write_wikitext(path: Path, texts: list[str]) -> WikiText:
    """An article of each text, its words and marks set apart as WikiText's are, with a section and a formula that is no heading."""
    path.write_text("".join(_article(number, text) for number, text in enumerate(texts)), encoding="utf-8")
    return WikiText(path, len(texts))


def _article(number: int, text: str) -> str:
    words = re.sub(r"(?<=\w)-(?=\w)", " @-@ ", text)
    prose = " ".join(re.sub(r"([,.;:()])", r" \1 ", words).split())
    formula, section = " so that \n = x = \n holds . \n", " = = A twenty @-@ first part = = \n"
    return f" \n = Topic {number} = \n \n {prose} \n{formula} \n{section} \n It cost 10 @,@ 000 , or 1 @.@ 5 % . \n"
