"""The base model against the trained one, as a table for a person at a terminal.

print_table(json.loads(Path("metrics/evaluation.json").read_text()))
"""

from typing import Any, Literal, NamedTuple

from prosemill.console import print_rows


class Line(NamedTuple):
    """One metric as people see it."""

    name: str
    """Name in metrics/evaluation.json."""
    label: str
    better: Literal["lower", "higher", "like human"]
    digits: int
    """Digits after the point."""


LINES = (
    Line("bits_per_byte", "bits per byte", "lower", 4),
    Line("bits_per_byte_half_stride", "bits per byte, half stride", "lower", 4),
    Line("token_perplexity", "token perplexity", "lower", 2),
    Line("token_perplexity_half_stride", "token perplexity, half stride", "lower", 2),
    Line("word_perplexity", "word perplexity", "lower", 2),
    Line("bleu", "BLEU", "higher", 4),
    Line("rouge1", "ROUGE-1", "higher", 4),
    Line("rouge2", "ROUGE-2", "higher", 4),
    Line("rougeL", "ROUGE-L", "higher", 4),
    Line("sampled_bleu", "BLEU, samples", "higher", 4),
    Line("sampled_rougeL", "ROUGE-L, samples", "higher", 4),
    Line("distinct_1", "distinct-1", "like human", 3),
    Line("distinct_2", "distinct-2", "like human", 3),
    Line("distinct_3", "distinct-3", "like human", 3),
    Line("repetition_rate", "repetition rate", "like human", 3),
    Line("loop_rate", "loop rate", "like human", 3),
    Line("sampled_distinct_2", "distinct-2, samples", "like human", 3),
    Line("sampled_repetition_rate", "repetition rate, samples", "like human", 3),
    Line("time_to_first_token_ms", "time to first token, ms", "lower", 1),
    Line("time_per_token_ms", "time per token, ms", "lower", 1),
)

READABLE = 1e6  # greater numbers are shown by their power of ten

HEADER = ["metric", "base", "trained", "change", "trigram", "human", "unrelated text", "better"]
NUMERIC = [False, True, True, True, True, True, True, False]


def table_cells(metrics: dict[str, Any]) -> list[list[str]]:
    """The table's rows below `HEADER`, as text; a number that there is not is a dash."""
    return [_cells(line, metrics) for line in LINES]


def print_table(metrics: dict[str, Any]) -> None:
    """Print the content of metrics/evaluation.json: a drawn table on a terminal, aligned plain lines otherwise."""
    print_rows(HEADER, table_cells(metrics), title="Base model against trained model", numeric=NUMERIC, bold="trained")


def headline(metrics: dict[str, Any]) -> str:
    """The result in one sentence."""
    before, after = metrics["base"]["bits_per_byte"], metrics["trained"]["bits_per_byte"]
    change = 100 * (before - after) / before
    verdict = "as good as" if abs(change) < 0.05 else f"{abs(change):.1f} % {'better' if change > 0 else 'worse'} than"
    num_documents, num_bytes = metrics["base"]["num_documents"], metrics["base"]["num_bytes"]
    text = f"{num_documents:,} {metrics['data']['split']} documents ({num_bytes:,} bytes scored, {metrics['protocol']['direction']})"
    trigram = metrics.get("trigram")
    baseline = f" A trigram model of the same corpus: {trigram['bits_per_byte']:.4f}." if trigram else ""
    return f"{before:.4f} → {after:.4f} bits per byte on {text}: the trained model is {verdict} the base model.{baseline}"


def _cells(line: Line, metrics: dict[str, Any]) -> list[str]:
    # The calibrating rows name what they measure without `sampled_`: a human's text is one text.
    names = {"base": line.name, "trained": line.name, "trigram": line.name, "human": line.name.removeprefix("sampled_")}
    names["unrelated"] = names["human"]
    values = {row: metrics.get(row, {}).get(name) for row, name in names.items()}
    shown = {row: number_text(value, line.digits) for row, value in values.items()}
    change = _change(values["base"], values["trained"])
    return [line.label, shown["base"], shown["trained"], change, shown["trigram"], shown["human"], shown["unrelated"], line.better]


def number_text(value: float | None, digits: int) -> str:
    """A number as people read it: a dash for none, thousands set apart, a power of ten where it is huge."""
    if value is None:
        return "–"
    return f"{value:,.{digits}f}" if value < READABLE else f"{value:.2e}"


def _change(before: float | None, after: float | None) -> str:
    if not before or after is None:
        return "–"
    return f"{100 * (after - before) / before:+.1f} %"
