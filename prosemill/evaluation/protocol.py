"""The protocol: what is measured on which data, how the numbers are called, and the words that say so."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prosemill.console import say
from prosemill.evaluation.diversity import diversity
from prosemill.evaluation.documents import Passage, choose_passages, read_source, read_split
from prosemill.params import Evaluate

if TYPE_CHECKING:
    from prosemill.evaluation.continuations import Continuations
    from prosemill.evaluation.measurement import Measured
    from prosemill.evaluation.scoring import Score
    from prosemill.evaluation.text import Size

Row = dict[str, Any]

SIGNIFICANT_DIGITS = 6  # of the metrics; only the sums they come from are kept in full
KEPT_IN_FULL = ("nll_sum",)

TRIGRAM_NOTE = (
    "trigram: the baseline, an interpolated Kneser-Ney trigram (Kneser and Ney 1995; Chen and Goodman 1999) over the same tokens, "
    "counted on the first baseline_tokens tokens of the train split, and scored on the tokens that the models' scores count."
)
SERVING_NOTE = (
    "serving: the trained model's bits per byte through the service's own decoding engine on this processor, on windows of the context "
    "from the split's beginning until serving_tokens are scored. cost_bf16, cost_int8 and cost_int4 are what weights in that precision "
    "add to it, as a share of what fp32 gets."
)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Everything an evaluation found out."""

    metrics: Row
    """The content of metrics/evaluation.json: `protocol`, `data`, `base`, `trained`, `trigram`, `human`, `unrelated`, `serving`."""
    samples: list[dict[str, str]]
    """One row per prompt: `document_id`, `prompt`, `reference`, and each model's greedy and sampled continuations."""
    sources: dict[str, dict[str, str]]
    """`corpus` and `model`: where they are from, their licences and whom to credit."""
    num_shown: int
    """Rows of `samples` that the report prints."""


def evaluate_models(section: Evaluate, *, corpus: Path, tokens: Path, base: Path, trained: Path) -> Evaluation:
    """Evaluate the base and the trained model, and a trigram counted on the train split's tokens, on the split that `section` names.

    Raises:
        ProsemillError: a folder or file is missing or broken, no document is long enough, the models' tokenizers differ, or a setting goes
            beyond a model's context.
    """
    from prosemill.evaluation.measurement import measure_models

    sources = {"corpus": read_source(corpus), "model": read_source(base)}
    documents, data = read_split(corpus, section.split, section.max_documents, detokenized=section.detokenize)
    lengths = {"prompt_words": section.prompt_words, "continuation_words": section.continuation_words}
    passages, num_too_short = choose_passages(documents, num_prompts=section.num_prompts, **lengths)
    if len(passages) < section.num_prompts:
        say(f"evaluate: only {len(passages)} of {len(documents)} documents are long enough for one of the {section.num_prompts} prompts")
    measured = measure_models(section, documents, passages, {"base": base, "trained": trained}, tokens)
    metrics: Row = {
        "protocol": _settings(section, measured, len(passages), num_too_short) | {"notes": _notes(section, measured.scoring_note)},
        "data": data,
    }
    for name, score in measured.scores.items():
        half = measured.half_stride_scores[name]
        metrics[name] = text_metrics(score, half, measured.text, measured.half_stride_text) | {"num_documents": len(documents)}
    for name, continued in measured.continuations.items():
        metrics[name] |= _continuation_metrics(continued, passages, section) | measured.latency[name]
    metrics |= _calibration(passages, section) | _serving(measured)
    return Evaluation(
        metrics={name: _rounded(row) for name, row in metrics.items()},
        samples=_samples(passages, measured.continuations),
        sources=sources,
        num_shown=min(section.num_shown, len(passages)),
    )


def text_metrics(score: "Score", half_stride: "Score", text: "Size", half_stride_text: "Size") -> Row:
    """Bits per byte and the perplexities, from sums over all documents; never from means of batches."""
    return {
        "bits_per_byte": score.nll_sum / (math.log(2) * text.num_bytes),
        "bits_per_byte_half_stride": half_stride.nll_sum / (math.log(2) * half_stride_text.num_bytes),
        "token_perplexity": _perplexity(score.nll_sum, score.num_tokens),
        "token_perplexity_half_stride": _perplexity(half_stride.nll_sum, half_stride.num_tokens),
        "word_perplexity": _perplexity(score.nll_sum, text.num_words),
        "nll_sum": score.nll_sum,
        "num_tokens": score.num_tokens,
        "num_bytes": text.num_bytes,
        "num_words": text.num_words,
    }


def _perplexity(nll_sum: float, count: int) -> float | None:
    """exp(nll_sum / count); None (null) where there is nothing to count or a float cannot hold it, as in text written without spaces."""
    if count == 0 or nll_sum / count > math.log(1e300):
        return None
    return math.exp(nll_sum / count)


def _continuation_metrics(continued: "Continuations", passages: Sequence[Passage], section: Evaluate) -> Row:
    """Overlap and diversity of the greedy continuations, and with `sampled_` of the samples (means over the sample numbers)."""
    from prosemill.evaluation.overlap import overlap

    references = [passage.reference for passage in passages]
    settings = {"resamples": section.bootstrap_resamples, "seed": section.seed}
    row = overlap([continued.greedy], references, **settings) | diversity(continued.greedy)
    sampled = overlap(continued.samples, references, **settings)
    rates = [diversity(texts) for texts in continued.samples]
    sampled |= {name: math.fsum(rate[name] for rate in rates) / len(rates) for name in rates[0]}
    return row | {f"sampled_{name}": value for name, value in sampled.items()}


def _calibration(passages: Sequence[Passage], section: Evaluate) -> Row:
    """What the numbers of the models are to be read against.

    `human`: diversity of what the human wrote. `unrelated`: overlap of each reference with the next one, human text of the same
    length on another subject; empty where there is one passage only.
    """
    from prosemill.evaluation.overlap import overlap

    references = [passage.reference for passage in passages]
    others = references[1:] + references[:1]
    unrelated = overlap([others], references, resamples=section.bootstrap_resamples, seed=section.seed) if len(references) > 1 else {}
    return {"human": diversity(references), "unrelated": unrelated}


def _serving(measured: "Measured") -> Row:
    """`serving`: what weights of fewer bits cost, as a share of bits per byte; no row where that was not measured."""
    if not measured.serving:
        return {}
    exact = measured.serving["fp32"]
    costs = {f"cost_{name}": score.nll_sum / exact.nll_sum - 1 for name, score in measured.serving.items() if name != "fp32"}
    return {"serving": costs | {"num_tokens": exact.num_tokens}}


def _settings(section: Evaluate, measured: "Measured", num_prompts: int, num_too_short: int) -> Row:
    return {
        "direction": measured.direction,
        "detokenize": section.detokenize,
        "baseline_tokens": section.baseline_tokens,
        "context": section.context,
        "stride": section.context,
        "half_stride": section.context // 2,
        "num_prompts": num_prompts,
        "num_prompts_asked": section.num_prompts,
        "num_documents_too_short": num_too_short,
        "prompt_words": section.prompt_words,
        "continuation_words": section.continuation_words,
        "num_samples": section.num_samples,
        "temperature": section.temperature,
        "top_p": section.top_p,
        "bootstrap_resamples": section.bootstrap_resamples,
        "seed": section.seed,
        "batch_size": section.batch_size,
        "bleu_smoothing": "nltk method1",
        "rouge_use_stemmer": False,
        "latency_batch_size": 1,
        "latency_prompt_tokens": section.latency_prompt_tokens,
        "latency_new_tokens": section.latency_new_tokens,
        "latency_repeats": section.latency_repeats,
        "serving_tokens": section.serving_tokens,
    } | measured.machine


def _notes(section: Evaluate, scoring: str) -> list[str]:
    """The protocol in words. A list, because DVC shows every single string of a metrics file as a column."""
    context, words = section.context, section.continuation_words
    return [
        f"{scoring} Names of special tokens in the text are ordinary text. -ln p is summed over all tokens "
        "(float64 sums of fp32 log-probabilities; fp32 weights, matrix products in scoring_arithmetic); means of "
        "batches are never averaged.",
        f"Strides: token_perplexity uses windows {context} tokens apart, token_perplexity_half_stride windows "
        f"{context // 2} apart, of which only tokens not scored before count (Hugging Face, Perplexity of "
        f"fixed-length models). bits_per_byte, word_perplexity and nll_sum are of stride {context}; "
        f"bits_per_byte_half_stride is of stride {context // 2}.",
        "bits_per_byte = nll_sum / (ln 2 x num_bytes), num_bytes the UTF-8 bytes of the text; it compares across "
        "tokenizers. token_perplexity = exp(nll_sum / num_tokens). word_perplexity = exp(nll_sum / num_words), "
        "num_words the whitespace-separated words of the original text (neither detokenised nor normalised). "
        + (
            "The text scored has WikiText's tokenisation undone, by rules; where only a part of a document is scored, the words are that "
            "part's after it."
            if section.detokenize
            else "The text scored is the corpus's own."
        ),
        *([TRIGRAM_NOTE] if section.baseline_tokens is not None else []),
        f"Continuations: the first {section.prompt_words} whitespace-separated words of a document are the prompt,"
        f" its next {words} the reference; documents with fewer words are passed over and "
        "counted. At most max_new_tokens tokens are generated, to end-of-text or the "
        f"tokenizer's own end of sequence, and cut to {words} words. Plain names are of the greedy continuation; "
        "sampled_ names are means over num_samples samples at the given temperature and top_p, each row with a "
        "random generator of its own, seeded by the seed, the document's id and the sample's number. batch_size changes no "
        "draw, but in bf16 and fp16 rounding differs with it, and a near tie between two tokens may fall the other way.",
        "bleu (nltk corpus BLEU-4, smoothing method1) and rouge1, rouge2, rougeL (rouge-score's F-measures, no stemming) compare the "
        "continuation alone with the reference, never the prompt. Tokens are runs of letters, marks and digits of any script, and each "
        "character of scripts written without spaces; for BLEU punctuation marks too, case kept; for ROUGE case folded.",
        f"_ci95: percentile bootstrap over the prompts, {section.bootstrap_resamples} resamples, the same ones for every row.",
        "unrelated: each reference scored against the next prompt's reference, human text of the same length. human: the references' own "
        "diversity.",
        "distinct_n: different n-grams / n-grams of all continuations (Li et al. 2016). repetition_rate: share of"
        " 4-grams that occurred earlier in the same continuation, over all 4-grams (seq-rep-4, Welleck et al. "
        "2020). loop_rate: share of continuations whose last max(3 p, 8) tokens repeat with some period p.",
        "Latency: batch 1, greedy, weights in generation_dtype; medians and 95th percentiles after one warm-up, the two models in turns. "
        "time_to_first_token_ms over the repeats, time_per_token_ms over the intervals between tokens.",
        *([SERVING_NOTE] if section.serving_tokens else []),
    ]


def _samples(passages: Sequence[Passage], continued: Mapping[str, "Continuations"]) -> list[dict[str, str]]:
    rows = []
    for index, passage in enumerate(passages):
        row = {"document_id": passage.document_id, "prompt": passage.prompt, "reference": passage.reference}
        for name, texts in continued.items():
            row[name] = texts.greedy[index]
            row |= {f"{name}_sample_{number}": sample[index] for number, sample in enumerate(texts.samples, start=1)}
        rows.append(row)
    return rows


def _rounded(row: Row) -> Row:
    return {name: value if name in KEPT_IN_FULL else _round(value) for name, value in row.items()}


def _round(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
    return [_round(item) for item in value] if isinstance(value, list) else value
