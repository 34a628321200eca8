r"""The evaluation as files: metrics/evaluation.json for programs, reports/evaluation.md with pictures for people.

    files = write_evaluation(evaluation, metrics=Path("metrics/evaluation.json"), reports=Path("reports"))

What a model or an author wrote is shown as text: `as_markdown` takes the power of markup from it.
"""

import html
import json
import re
import unicodedata
from pathlib import Path
from typing import Any

from prosemill.evaluation.figures import draw_before_and_after, draw_continuations
from prosemill.evaluation.protocol import Evaluation
from prosemill.evaluation.table import HEADER, NUMERIC, headline, table_cells
from prosemill.metrics import write_metrics
from prosemill.shards import write_durably
from prosemill.workspace import COMPARISON

REPORT = "evaluation.md"
SAMPLES = "samples.json"
BEFORE_AND_AFTER = "before_and_after.png"
CONTINUATIONS = "continuations.png"
LOSS_CURVE = "loss_curve.png"  # drawn by train

MARKUP = re.compile(r"([\\`*_\[\]<>|~$!@]|(?<=http):|(?<=https):|(?<=www)\.)")  # within a line, as GitHub reads it
BLOCK_START = re.compile(r"^(\d*)([-+#=.)])")  # what makes a heading, list or rule of a line


def write_evaluation(evaluation: Evaluation, *, metrics: Path, reports: Path) -> list[Path]:
    """Write the metrics file, and the report, its pictures and all samples into the reports folder; return the report and the pictures."""
    figures = [reports / BEFORE_AND_AFTER, reports / CONTINUATIONS]
    draw_before_and_after(evaluation.metrics, figures[0])
    draw_continuations(evaluation.metrics, figures[1])
    write_durably(reports / SAMPLES, json.dumps(evaluation.samples, indent=2, ensure_ascii=False) + "\n")
    write_durably(reports / REPORT, report_text(evaluation, has_loss_curve=(reports / LOSS_CURVE).is_file()))
    write_metrics(metrics, evaluation.metrics)
    return [reports / REPORT, *figures]


def report_text(evaluation: Evaluation, *, has_loss_curve: bool) -> str:
    """The report in Markdown; `has_loss_curve` tells whether train's picture lies beside it."""
    metrics = evaluation.metrics
    parts = [
        "# Evaluation",
        f"**{headline(metrics)}**",
        f"![Bits per byte and perplexities before and after]({BEFORE_AND_AFTER})",
        _table(metrics),
        _reading_help(metrics),
        f"![Overlap and diversity of the continuations]({CONTINUATIONS})",
    ]
    if "serving" in metrics:
        parts += ["## When served", _serving(metrics["serving"])]
    if has_loss_curve:
        parts += ["## Training", f"![Loss while training]({LOSS_CURVE})"]
    parts += ["## The same beginnings, continued", _shown_intro(evaluation), *_shown(evaluation)]
    parts += ["## Protocol", _settings(metrics), "\n".join(f"- {as_markdown(note)}" for note in metrics["protocol"]["notes"])]
    parts += ["## Sources", *(_source(name, source) for name, source in evaluation.sources.items())]
    parts += [
        "## Beside other experiments",
        f"`prosemill compare --write` puts all experiments side by side into [{COMPARISON.name}]({COMPARISON.name}).",
    ]
    return "\n\n".join(parts) + "\n"


def as_markdown(text: str) -> str:
    """The text on one line, with nothing that Markdown or HTML would act on, and no control characters."""
    line = " ".join(text.split())
    visible = "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(char) in ("Cc", "Cf", "Cs") else char for char in line)
    return html.escape(BLOCK_START.sub(r"\1\\\2", MARKUP.sub(r"\\\1", visible)), quote=False)


def _table(metrics: dict[str, Any]) -> str:
    rows = [HEADER, ["---:" if is_number else "---" for is_number in NUMERIC], *table_cells(metrics)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _reading_help(metrics: dict[str, Any]) -> str:
    protocol = metrics["protocol"]
    words = f"{protocol['continuation_words']} words"
    trigram = "*Trigram* is what counting triples of the same tokens in the train split gets. " if "trigram" in metrics else ""
    return (
        f"Bits per byte is the headline: it compares across tokenizers. {trigram}BLEU and ROUGE compare "
        f"{words} of greedy continuation with the {words} that the human wrote; *unrelated text* is what human text on "
        "another subject gets, the floor. Differences smaller than the 95 % intervals in the picture below "
        f"({protocol['num_prompts']} prompts) mean little. Distinct-n, repetition and loops are best when they are like "
        "the *human* column. Times depend on the machine; both models have the same shape, so a difference between their "
        "times is the machine's noise."
    )


def _serving(row: dict[str, Any]) -> str:
    costs = {name.removeprefix("cost_"): value for name, value in row.items() if name.startswith("cost_")}
    lines = "\n".join(f"| {name} | {100 * value:+.2f} % |" for name, value in costs.items())
    return (
        f"What weights of fewer bits cost in the service's decoding engine, on {row['num_tokens']:,} tokens:\n\n"
        f"| weights in | bits per byte, against fp32 |\n| --- | ---: |\n{lines}"
    )


def _shown_intro(evaluation: Evaluation) -> str:
    protocol = evaluation.metrics["protocol"]
    return (
        f"Greedy continuations of the first {evaluation.num_shown} of {protocol['num_prompts']} prompts. "
        f"All of them, with {protocol['num_samples']} samples each, are in [{SAMPLES}]({SAMPLES})."
    )


def _shown(evaluation: Evaluation) -> list[str]:
    parts = []
    for row in evaluation.samples[: evaluation.num_shown]:
        cells = " | ".join(as_markdown(row[name]) or "*(nothing)*" for name in ("base", "trained", "reference"))
        title = f"### {as_markdown(row['document_id'])}"
        parts += [
            title,
            f"> {as_markdown(row['prompt'])} …",
            f"| base model | trained model | what the human wrote |\n| --- | --- | --- |\n| {cells} |",
        ]
    return parts


def _settings(metrics: dict[str, Any]) -> str:
    protocol, data = metrics["protocol"], metrics["data"]
    settings = {name: value for name, value in protocol.items() if name != "notes"} | {"data_digest": data["digest"]}
    lines = "\n".join(f"| `{name}` | {as_markdown(str(value))} |" for name, value in settings.items())
    return f"| setting | value |\n| --- | --- |\n{lines}"


def _source(name: str, source: dict[str, Any]) -> str:
    origin = source.get("requirement") or source.get("repository") or source.get("source") or "unknown"
    facts = {"from": origin, "revision": source.get("revision"), "SHA-256": source.get("sha256")}
    facts |= {"licence": source.get("license"), "attribution": source.get("attribution")}
    told = "; ".join(f"{label}: {as_markdown(str(fact))}" for label, fact in facts.items() if fact)
    return f"- **{'Corpus' if name == 'corpus' else 'Base model'}** — {told}"
