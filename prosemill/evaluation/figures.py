"""The evaluation in pictures: before and after, and the continuations beside what a human wrote.

draw_before_and_after(metrics, Path("reports/before_and_after.png"))
draw_continuations(metrics, Path("reports/continuations.png"))
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from prosemill.evaluation.table import number_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {"base": "#9aa5b1", "trained": "#1f6feb", "human": "#2da44e", "unrelated": "#d4a72c"}
NAMES = {"base": "base", "trained": "trained", "human": "human text", "unrelated": "unrelated human text"}
TEXT = "#24292f"
DOTS_PER_INCH = 130


def draw_before_and_after(metrics: dict[str, Any], path: Path) -> None:
    """Bits per byte and the perplexities of both models, one panel each, as they have scales of their own."""
    panels = {"bits_per_byte": "bits per byte", "token_perplexity": "token perplexity", "word_perplexity": "word perplexity"}
    panels = {name: label for name, label in panels.items() if all(metrics[row][name] is not None for row in ("base", "trained"))}
    figure = _new_figure(width=3.2 * len(panels), height=3.9)
    for position, (name, label) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), position)
        before, after = metrics["base"][name], metrics["trained"][name]
        bars = axes.bar(["base", "trained"], [before, after], color=[COLORS["base"], COLORS["trained"]], width=0.6)
        labels = [number_text(value, digits=3 if value < 10 else 2) for value in (before, after)]
        axes.bar_label(bars, labels=labels, padding=3, color=TEXT)
        axes.set_title(f"{label}\n{100 * (after - before) / before:+.1f} %", fontsize=11, color=TEXT)
        axes.set_ylim(0, 1.15 * max(before, after))
        _quiet(axes)
    figure.suptitle("Before and after training (lower is better)", fontsize=12, color=TEXT)
    _save(figure, path)


def draw_continuations(metrics: dict[str, Any], path: Path) -> None:
    """Overlap with the human's continuation (with 95 % confidence intervals), and diversity, each beside its calibrating row."""
    protocol = metrics["protocol"]
    figure = _new_figure(width=10.4, height=4.4)
    overlap = {"bleu": "BLEU", "rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}
    left = figure.add_subplot(1, 2, 1)
    _grouped_bars(left, metrics, overlap, ("base", "trained", "unrelated"))
    left.set_title("Overlap with the human's continuation\n(0 to 1, higher is better; 95 % intervals)", fontsize=11, color=TEXT)
    rates = {
        "distinct_1": "distinct-1",
        "distinct_2": "distinct-2",
        "distinct_3": "distinct-3",
        "repetition_rate": "repetition",
        "loop_rate": "loops",
    }
    right = figure.add_subplot(1, 2, 2)
    _grouped_bars(right, metrics, rates, ("base", "trained", "human"))
    right.set_title("Diversity and repetition\n(shares, best when like human text)", fontsize=11, color=TEXT)
    figure.suptitle(
        f"{protocol['num_prompts']} prompts of {protocol['prompt_words']} words, continued greedily by "
        f"{protocol['continuation_words']} words",
        fontsize=12,
        color=TEXT,
    )
    _save(figure, path)


def _grouped_bars(axes: "Axes", metrics: dict[str, Any], names: dict[str, str], rows: tuple[str, ...]) -> None:
    present = [row for row in rows if metrics[row]]
    width = 0.8 / len(present)
    for offset, row in enumerate(present):
        heights = [metrics[row][name] for name in names]
        positions = [index + (offset - (len(present) - 1) / 2) * width for index in range(len(names))]
        axes.bar(positions, heights, width=0.92 * width, color=COLORS[row], label=NAMES[row])
        intervals = [metrics[row].get(f"{name}_ci95") for name in names]
        for position, height, interval in zip(positions, heights, intervals, strict=True):
            if interval is not None:
                low, high = interval
                # A percentile interval of skewed resamples may leave its point out by a hair.
                errors = [[max(0.0, height - low)], [max(0.0, high - height)]]
                axes.errorbar(position, height, yerr=errors, color=TEXT, linewidth=1, capsize=2.5)
    axes.set_xticks(range(len(names)), list(names.values()))
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=9, labelcolor=TEXT)
    _quiet(axes)


def _new_figure(width: float, height: float) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _quiet(axes: "Axes") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#d0d7de")
    axes.tick_params(colors=TEXT, labelsize=9)
    axes.yaxis.grid(visible=True, color="#eaeef2")
    axes.set_axisbelow(True)


def _save(figure: "Figure", path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", facecolor="white", metadata={"Software": None})
