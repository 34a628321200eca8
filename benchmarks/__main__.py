"""All measurements, one after the other: `make bench`, or `python -m benchmarks`. The larger runs of RESULTS.md have their own commands."""

from benchmarks import corpus, flows, kills, minis, pipeline, promotions, startup, tokens

CORPUS_GIGABYTES = 0.2
KILLS = 6
PROMOTION_KILLS = 50


def main() -> None:
    """Run them, the quick ones first."""
    startup.main()
    tokens.main()
    corpus.main(gigabytes=CORPUS_GIGABYTES)
    kills.main(kills=KILLS)
    promotions.main(kills=PROMOTION_KILLS)
    flows.main(rounds=1, overrides=["model=tiny", "corpus=python-300"])
    pipeline.main()
    minis.main()


if __name__ == "__main__":
    main()
