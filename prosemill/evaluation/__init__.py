"""How good the models are: the evaluation protocol, for the base model and the trained one side by side.

    from prosemill.evaluation import evaluate_models, write_evaluation
    evaluation = evaluate_models(section, corpus=CORPUS, tokens=TOKENS, base=BASE_MODEL, trained=TRAINED_MODEL)
    files = write_evaluation(evaluation, metrics=METRICS / "evaluation.json", reports=REPORTS)

Every number's protocol is stated in the file that holds the number. Nothing heavy is imported before it is needed, so that
`print_table` can show a finished evaluation at once.
"""

from prosemill.evaluation.protocol import Evaluation, evaluate_models
from prosemill.evaluation.report import write_evaluation
from prosemill.evaluation.table import print_table

__all__ = ["Evaluation", "evaluate_models", "print_table", "write_evaluation"]
