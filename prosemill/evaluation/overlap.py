"""BLEU and ROUGE of continuations against what the human wrote, with bootstrap confidence intervals.

    overlap([["a b c d e"]], ["a b c d e"], resamples=1000, seed=0)["bleu"]  # 1.0

Scores are of the continuation only: a prompt never comes near this room. They lie between 0 and 1.
"""

import atexit
import os
import shutil
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

MODULES = Path(__file__).resolve().parent / "modules"
ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")
CONFIDENCE = 0.95
SMOOTHING_EPSILON = 0.1  # nltk's method1 counts this many matches where there are none

Counts = npt.NDArray[np.float64]


def overlap(predictions: Sequence[Sequence[str]], references: Sequence[str], *, resamples: int, seed: int) -> dict[str, Any]:
    """BLEU and ROUGE-1/2/L, each with its 95 % confidence interval.

    Args:
        predictions: One or more sets of texts, each with one text for each reference, in the references' order.
        references: What the human wrote, at least one text.
        resamples: Resamples of the references (with all their predictions) for the intervals.
        seed: Seed of the resamples; the same seed resamples two models alike.

    Returns:
        `bleu`, `rouge1`, `rouge2`, `rougeL`: means over the sets. `…_ci95`: [low, high], the 2.5th and 97.5th percentile of the
        bootstrap's means (Efron 1979; Koehn 2004 for BLEU, whose n-gram counts are summed anew for each resample).
    """
    weights = resample_weights(len(references), resamples, seed)
    whole = np.ones((1, len(references)))
    scores: dict[str, list[Counts]] = {}
    for texts in predictions:
        bleu_counts = _bleu_counts(texts, references)
        scores.setdefault("bleu", []).append(np.concatenate([bleu_of_counts(rows @ bleu_counts) for rows in (whole, weights)]))
        for name, values in _rouge_values(texts, references).items():
            scores.setdefault(name, []).append(np.concatenate([rows @ values / len(references) for rows in (whole, weights)]))
    row: dict[str, Any] = {}
    for name, sets in scores.items():
        point, *resampled = np.mean(sets, axis=0)
        tail = (1 - CONFIDENCE) / 2
        low, high = np.quantile(resampled, [tail, 1 - tail])
        row |= {name: float(point), f"{name}_ci95": [float(low), float(high)]}
    return row


def resample_weights(num_examples: int, resamples: int, seed: int) -> Counts:
    """How often each example occurs in each resample with replacement: [resamples, num_examples], every row sums to num_examples."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(num_examples, np.full(num_examples, 1 / num_examples), size=resamples).astype(np.float64)


def bleu_of_counts(counts: Counts) -> Counts:
    """BLEU-4 with smoothing method 1 from summed counts, as nltk's `corpus_bleu` computes it, for many corpora at once.

    Args:
        counts: [corpora, 10]: matches and totals of the four orders, tokens of the predictions and of the references.

    Returns:
        [corpora], each between 0 and 1.
    """
    matches, totals, predicted, referred = counts[:, :4], counts[:, 4:8], counts[:, 8], counts[:, 9]
    precisions = np.where(matches == 0, SMOOTHING_EPSILON, matches) / totals
    brevity = np.exp(np.minimum(0.0, 1 - referred / np.maximum(predicted, 1)))
    return np.where(matches[:, 0] == 0, 0.0, brevity * np.exp(np.log(precisions).mean(axis=1)))


def load_module(name: str) -> Any:
    """An `evaluate` module of this repository, `bleu` or `rouge`, by its absolute path: nothing is asked of a hub."""
    import evaluate

    modules_cache = Path(evaluate.config.HF_MODULES_CACHE)
    if not _is_writable(modules_cache):
        evaluate.config.HF_MODULES_CACHE = Path(_scratch_folder()) / "modules"
    return evaluate.load(str(MODULES / name / f"{name}.py"), keep_in_memory=True, cache_dir=_scratch_folder())


def _bleu_counts(texts: Sequence[str], references: Sequence[str]) -> Counts:
    """[examples, 10], the columns of `bleu_of_counts`."""
    counts = load_module("bleu").compute(predictions=list(texts), references=list(references), per_example=True)
    lengths = np.stack([counts["prediction_tokens"], counts["reference_tokens"]], axis=1)
    return np.concatenate([np.array(counts["matches"]), np.array(counts["totals"]), lengths], axis=1).astype(np.float64)


def _rouge_values(texts: Sequence[str], references: Sequence[str]) -> dict[str, Counts]:
    """F-measures by type, each [examples]."""
    values = load_module("rouge").compute(predictions=list(texts), references=list(references), per_example=True)
    return {name: np.array(values[name], dtype=np.float64) for name in ROUGE_TYPES}


def _is_writable(folder: Path) -> bool:
    """Whether the folder is there, made now if need be, and takes files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


@cache
def _scratch_folder() -> str:
    """A temporary folder of this process, removed when it ends: `evaluate` makes folders even for what stays in memory."""
    folder = tempfile.mkdtemp(prefix="prosemill-evaluate-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
