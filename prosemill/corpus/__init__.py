"""Where text comes from and how it is split: one call turns any source into deduplicated, split Parquet.

    metrics = build_corpus(read_section("download", Download), CORPUS)

Two passes. The first reads the source once, in constant memory, and spreads its documents over partitions by a hash of their text, so
that exact duplicates meet. The second (one shard of `run_shards` per partition) drops duplicates, assigns splits and writes Parquet.
A source is one file of this folder: wheel.py, files.py, python_source.py, hub.py.
"""

from prosemill.corpus.build import build_corpus

__all__ = ["build_corpus"]
