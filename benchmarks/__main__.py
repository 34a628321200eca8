"""All measurements, one after the other: `make bench`, or `python -m benchmarks`."""

from benchmarks import pipeline, startup, tokens


def main() -> None:
    """Run them, the quick ones first."""
    startup.main()
    tokens.main()
    pipeline.main()


if __name__ == "__main__":
    main()
