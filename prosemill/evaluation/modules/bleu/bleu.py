"""BLEU as an `evaluate` module: nltk's corpus BLEU with named smoothing, over words of any script.

    evaluate.load("/absolute/path/bleu.py").compute(predictions=["the cat sat"], references=["the cat sat"])

The imports stand one to a line: `evaluate` reads them with a regular expression.
"""

from typing import Any

import datasets
import evaluate
from nltk.translate import bleu_score

from prosemill.evaluation.words import tokens

ORDERS = (1, 2, 3, 4)


class Bleu(evaluate.Metric):  # type: ignore[misc]
    """BLEU-4 of a corpus, one reference for each prediction."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Corpus BLEU with n-grams up to 4 (Papineni et al. 2002), smoothing method 1 of Chen and Cherry (2014).",
            citation="Papineni et al. 2002, BLEU: a Method for Automatic Evaluation of Machine Translation",
            inputs_description="predictions: texts; references: one text for each; per_example: give the counts instead of the score.",
            features=datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")}),
        )

    def _compute(self, predictions: list[str], references: list[str], per_example: bool = False) -> dict[str, Any]:
        """The score, 0 to 1, as {"bleu": …}; or what it is made of, a list over the examples each.

        With `per_example`: `matches` and `totals` [examples, 4] (clipped n-gram counts), `prediction_tokens`, `reference_tokens`.
        """
        predicted, referred = [tokens(text) for text in predictions], [[tokens(text)] for text in references]
        if not per_example:
            smoothing = bleu_score.SmoothingFunction().method1
            return {"bleu": float(bleu_score.corpus_bleu(referred, predicted, smoothing_function=smoothing))}
        precisions = [
            [bleu_score.modified_precision(references, prediction, order) for order in ORDERS]
            for references, prediction in zip(referred, predicted, strict=True)
        ]
        return {
            "matches": [[precision.numerator for precision in row] for row in precisions],
            "totals": [[precision.denominator for precision in row] for row in precisions],
            "prediction_tokens": [len(prediction) for prediction in predicted],
            "reference_tokens": [len(references[0]) for references in referred],
        }
