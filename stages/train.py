"""Blocks and a base model to a trained model: `python -m stages.train`."""

from prosemill.errors import run_main
from prosemill.params import Train, read_section
from prosemill.workspace import BASE_MODEL, BLOCKS, METRICS, REPORTS, TRAINED_MODEL


def main() -> None:
    """Run the stage."""
    from prosemill.training import train_model  # here: torch and transformers ask at import whether they may report home

    section = read_section("train", Train)
    train_model(section, blocks=BLOCKS, base=BASE_MODEL, output=TRAINED_MODEL, metrics=METRICS / "train.json", reports=REPORTS)


if __name__ == "__main__":
    run_main(main)
