"""All measurements, one after the other: `make bench`, or `python -m benchmarks`."""

from benchmarks import corpus, pipeline, startup, tokens


def main() -> None:
    """Run them, the quick ones first."""
    startup.main()
    tokens.main()
    pipeline.main()
    corpus.main()


if __name__ == "__main__":
    main()
