"""Pieces of the page's HTML. Whatever a person or a model wrote is escaped."""

from collections.abc import Sequence
from html import escape

from prosemill.evaluation.table import HEADER, LINES, headline, table_cells
from prosemill.serving.champion import Champion
from prosemill.serving.messages import Ending

SHOWN = ("bits_per_byte", "token_perplexity", "word_perplexity", "bleu", "rougeL", "distinct_2", "repetition_rate")
"""Metrics of the short report."""
COLUMNS = HEADER[:4]


def head(champion: Champion) -> str:
    """The page's title, and who is at work."""
    facts = [champion.name, f"version {champion.version}", champion.precision]
    chips = "".join(f"<span>{escape(fact)}</span>" for fact in facts if fact)
    return f'<header class="head"><h1>Prosemill</h1><p class="chips">{chips}</p></header>'


def card(title: str, prompt: str = "", text: str = "", ending: Ending | None = None) -> str:
    """A model's answer behind its prompt, and how it ended."""
    body = f'<b class="given">{escape(prompt)}</b>{escape(text)}' if prompt else '<i class="empty">The answer comes here.</i>'
    state = "" if ending or not prompt else " growing"
    return (
        f'<article class="answer"><h2>{escape(title)}</h2><p class="text{state}" dir="auto">{body}</p>'
        f"<footer>{_ending(ending) if ending else '&nbsp;'}</footer></article>"
    )


def _ending(ending: Ending) -> str:
    num_tokens, timings = ending.usage.completion_tokens, ending.timings
    facts = [f"{num_tokens} token{'s' * (num_tokens != 1)}", f"{timings.seconds:.1f} s"]
    if timings.first_token_seconds is not None:
        facts.append(f"first after {1000 * timings.first_token_seconds:.0f} ms")
    facts.append({"stop": "ended by itself", "length": "full length", "deadline": "cut at the deadline"}[ending.finish_reason])
    return f"{' · '.join(facts)}<br><code>{escape(ending.id)}</code>"


def note(text: str, *, is_fault: bool = False) -> str:
    """One line below the buttons."""
    return f'<p class="note{" fault" * is_fault}" role="status">{escape(text) or "&nbsp;"}</p>'


def report(champion: Champion) -> str:
    """The evaluation of the version, in short."""
    if not champion.metrics:
        return '<p class="note">No evaluation was kept with this version.</p>'
    rows = [cells for line, cells in zip(LINES, table_cells(dict(champion.metrics)), strict=True) if line.name in SHOWN]
    body = "".join(_row(cells[: len(COLUMNS)], "td") for cells in rows)
    sentence = escape(headline(dict(champion.metrics)))
    return f'<section class="report"><p>{sentence}</p><table><thead>{_row(COLUMNS, "th")}</thead><tbody>{body}</tbody></table></section>'


def _row(cells: Sequence[str], kind: str) -> str:
    return f"<tr>{''.join(f'<{kind}>{escape(cell)}</{kind}>' for cell in cells)}</tr>"
