"""What can be measured with no more than `dvc repro download` leaves, one after the other: `make bench`, or `python -m benchmarks`.

The larger runs of RESULTS.md have their own commands, as have those that need more: `python -m benchmarks.service` a promoted champion,
`python -m benchmarks.serving` a service that runs, and `python -m benchmarks.decoding` llama.cpp, if that shall be among its peers.
"""

from benchmarks import corpus, decoding, flows, kills, minis, pipeline, promotions, startup, tokens

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
    decoding.main(rounds=1, precision=["int8"])
    flows.main(rounds=1, overrides=["model=tiny", "corpus=python-300"])
    pipeline.main()
    minis.main()


if __name__ == "__main__":
    main()
