"""ROUGE-1, ROUGE-2 and ROUGE-L as an `evaluate` module: rouge-score's F-measures, over words of any script.

    evaluate.load("/absolute/path/rouge.py").compute(predictions=["the cat sat"], references=["the cat sat"])

rouge-score's own tokenizer keeps [a-z0-9] alone, so that Cyrillic text would score 0 against itself. Each package is imported on a
line of its own: `evaluate` reads the imports with a regular expression.
"""

from typing import Any

import datasets
import evaluate
from rouge_score import rouge_scorer, tokenizers

from prosemill.evaluation.words import words

TYPES = ("rouge1", "rouge2", "rougeL")


class UnicodeTokenizer(tokenizers.Tokenizer):  # type: ignore[misc]
    """Case-folded words of any script, not stemmed."""

    def tokenize(self, text: str) -> list[str]:
        """The words of a text."""
        return words(text)


class Rouge(evaluate.Metric):  # type: ignore[misc]
    """Mean F-measures over the examples, one reference for each prediction."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="ROUGE-1, ROUGE-2 and ROUGE-L F-measures (Lin 2004), without stemming.",
            citation="Lin 2004, ROUGE: A Package for Automatic Evaluation of Summaries",
            inputs_description="predictions: texts; references: one text for each; per_example: give a list instead of the mean.",
            features=datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")}),
        )

    def _compute(self, predictions: list[str], references: list[str], per_example: bool = False) -> dict[str, Any]:
        """The mean F-measures, 0 to 1, as {"rouge1": …, "rouge2": …, "rougeL": …}; with `per_example` lists over the examples."""
        scorer = rouge_scorer.RougeScorer(list(TYPES), use_stemmer=False, tokenizer=UnicodeTokenizer())
        scores = [scorer.score(target=reference, prediction=text) for text, reference in zip(predictions, references, strict=True)]
        lists = {name: [float(score[name].fmeasure) for score in scores] for name in TYPES}
        return lists if per_example else {name: sum(values) / len(values) for name, values in lists.items()}
