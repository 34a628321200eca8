"""Where text comes from and how it is split: one call turns any source into deduplicated, split Parquet.

    metrics = build_corpus(read_section("download", Download), CORPUS)

The first pass (units.py) reads the source in parts of about 64 MB, in parallel, and keeps what each found, so that a kill costs the parts
in work. On the numbers it leaves, plan.py decides which documents stay and in which split: within the limit, without exact duplicates, and
without near-duplicates (near_duplicates.py). A check (contamination.py) then finds training documents that hold evaluation text, and the
second pass (shard.py) writes Parquet. A source is one file of this folder: wheel.py, files.py, python_source.py, hub.py.
"""

from prosemill.corpus.build import build_corpus

__all__ = ["build_corpus"]
