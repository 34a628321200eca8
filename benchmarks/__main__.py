"""All measurements, one after the other: `make bench`, or `python -m benchmarks`. The larger runs of RESULTS.md have their own commands."""

from benchmarks import corpus, kills, minis, pipeline, startup, tokens

CORPUS_GIGABYTES = 0.2
KILLS = 6


def main() -> None:
    """Run them, the quick ones first."""
    startup.main()
    tokens.main()
    corpus.main(gigabytes=CORPUS_GIGABYTES)
    kills.main(kills=KILLS)
    pipeline.main()
    minis.main()


if __name__ == "__main__":
    main()
