"""Stage 1: fetch the corpus and the base model. Run by DVC, or by hand: `python -m stages.download`."""

from prosemill.base_model import build_base_model
from prosemill.corpus import build_corpus
from prosemill.errors import run_main
from prosemill.metrics import write_metrics
from prosemill.params import Download, read_section
from prosemill.workspace import BASE_MODEL, CORPUS, METRICS


def main() -> None:
    """Fetch both, in this order: a tokenizer may be trained on the corpus."""
    section = read_section("download", Download)
    corpus = build_corpus(section, CORPUS)
    write_metrics(METRICS / "download.json", {"corpus": corpus, "model": build_base_model(section, CORPUS, BASE_MODEL)})


if __name__ == "__main__":
    run_main(main)
