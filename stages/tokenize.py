"""Stage 2: the corpus as token ids. Run by DVC, or by hand: `python -m stages.tokenize`."""

from prosemill.errors import run_main
from prosemill.metrics import write_metrics
from prosemill.params import Tokenize, read_section
from prosemill.tokens import tokenize_corpus
from prosemill.workspace import BASE_MODEL, CORPUS, METRICS, TOKENS


def main() -> None:
    """Tokenise the corpus."""
    section = read_section("tokenize", Tokenize)
    write_metrics(METRICS / "tokenize.json", tokenize_corpus(section, CORPUS, BASE_MODEL, TOKENS))


if __name__ == "__main__":
    run_main(main)
