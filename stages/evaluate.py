"""The base and the trained model, side by side, and a trigram baseline: `python -m stages.evaluate`."""

from prosemill.errors import run_main
from prosemill.evaluation import evaluate_models, print_table, write_evaluation
from prosemill.params import Evaluate, read_section
from prosemill.tracking import track_evaluation
from prosemill.workspace import BASE_MODEL, CORPUS, METRICS, REPORTS, TOKENS, TRAINED_MODEL


def main() -> None:
    """Run the stage."""
    section = read_section("evaluate", Evaluate)
    evaluation = evaluate_models(section, corpus=CORPUS, tokens=TOKENS, base=BASE_MODEL, trained=TRAINED_MODEL)
    files = write_evaluation(evaluation, metrics=METRICS / "evaluation.json", reports=REPORTS)
    track_evaluation(evaluation.metrics, evaluation.samples, files, trained=TRAINED_MODEL)
    print_table(evaluation.metrics)


if __name__ == "__main__":
    run_main(main)
