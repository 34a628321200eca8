"""Pieces of the page's HTML. Whatever a person or a model wrote is escaped."""

from collections.abc import Sequence
from contextlib import suppress
from html import escape

from prosemill.evaluation.table import HEADER, LINES, headline, table_cells
from prosemill.serving.champion import Champion
from prosemill.serving.page.answering import Growing
from prosemill.serving.stream import Finish, Finished

SHOWN = ("bits_per_byte", "token_perplexity", "word_perplexity", "bleu", "rougeL", "distinct_2", "repetition_rate")
"""Metrics of the short report."""
COLUMNS = HEADER[:4]
CARDS = {"Trained model": "answer", "Base model": "base-answer"}
"""Their titles and ids."""
ENDINGS: dict[Finish, str] = {"stop": "ended by itself", "length": "full length", "deadline": "cut at the deadline"}


def head(champion: Champion) -> str:
    """The page's title, and who is at work."""
    facts = [champion.facts.get("model"), f"version {champion.version}", champion.precision]
    chips = "".join(f"<span>{escape(fact)}</span>" for fact in facts if fact)
    return f'<header class="head"><h1>Prosemill</h1><p class="chips">{chips}</p></header>'


def empty_cards(*, with_base: bool) -> str:
    """Where the answers will stand."""
    body = '<p class="text empty">The answer comes here.</p>'
    return _answers([_card(title, body, "") for title in list(CARDS)[: 1 + with_base]])


def cards(prompt: str, answers: Sequence[Growing]) -> str:
    """The answers behind their prompt, and of those that have ended, how."""
    return _answers([_grown(title, prompt, answer) for title, answer in zip(CARDS, answers, strict=False)])


def _grown(title: str, prompt: str, answer: Growing) -> str:
    text = f'<span class="given">{escape(prompt)}</span>{escape(answer.text)}'
    state, ending = (" growing", "") if answer.finished is None else ("", _ending(answer.finished))
    return _card(title, f'<p class="text{state}" dir="auto">{text}</p>', ending)


def _card(title: str, body: str, ending: str) -> str:
    return f'<article id="{CARDS[title]}"><h2>{escape(title)}</h2>{body}<footer>{ending}</footer></article>'


def _answers(articles: Sequence[str]) -> str:
    return f'<div class="answers">{"".join(articles)}</div>'


def _ending(finished: Finished) -> str:
    end = finished.end
    facts = [f"{end.num_new_tokens} token{'s' * (end.num_new_tokens != 1)}", f"{end.seconds:.1f} s"]
    if end.first_token_seconds is not None:
        facts.append(f"first after {1000 * end.first_token_seconds:.0f} ms")
    return " · ".join((*facts, ENDINGS[finished.reason]))


def note(text: str, *, is_fault: bool = False) -> str:
    """One line below the buttons."""
    return f'<p class="note{" fault" * is_fault}" role="status">{escape(text) or "&nbsp;"}</p>'


def report(champion: Champion) -> str:
    """The evaluation of the version, in short."""
    metrics, sentence = dict(champion.metrics), ""
    if not metrics:
        return '<p class="note">No evaluation was kept with this version.</p>'
    with suppress(KeyError):  # of a version that was evaluated before there were all that it names
        sentence = f"<p>{escape(headline(metrics))}</p>"
    rows = [cells for line, cells in zip(LINES, table_cells(metrics), strict=True) if line.name in SHOWN]
    body = "".join(_row(cells[: len(COLUMNS)], "td") for cells in rows)
    return f'<section class="report">{sentence}<table><thead>{_row(COLUMNS, "th")}</thead><tbody>{body}</tbody></table></section>'


def _row(cells: Sequence[str], kind: str) -> str:
    return f"<tr>{''.join(f'<{kind}>{escape(cell)}</{kind}>' for cell in cells)}</tr>"
