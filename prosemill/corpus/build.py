"""From a section of params to `data/corpus`: chooses the source, runs both passes, writes SOURCE.json, adds up the metrics."""

import json
from pathlib import Path
from typing import Any

from prosemill.corpus.document import Source
from prosemill.corpus.files import FilesSource
from prosemill.corpus.hub import open_hub
from prosemill.corpus.partition import FORMAT, Partition, read_or_make_partition, remove_partition
from prosemill.corpus.python_source import PythonSource
from prosemill.corpus.shard import ShardTask, write_shard
from prosemill.corpus.splits import SplitRule
from prosemill.corpus.wheel import WheelSource
from prosemill.digests import sha256_of_value
from prosemill.params import Corpus, Download, FilesCorpus, HubCorpus, PythonSourceCorpus, WheelCorpus, as_plain
from prosemill.shards import Row, alone, rows_of_split, run_shards, write_durably
from prosemill.workspace import SPLITS

SOURCE_FILE = "SOURCE.json"


def build_corpus(section: Download, output: Path) -> dict[str, Any]:
    """Read the corpus, drop empty documents and exact duplicates, split it, and write it as Parquet.

    A killed call goes on where it stopped, and the bytes written do not depend on the number of workers, the machine or the kill.

    Args:
        section: Params; `corpus`, `num_shards`, `validation_share` and `test_share` count here.
        output: Folder that is made anew: `<split>/shard-00000.parquet` …, MANIFEST.jsonl, SOURCE.json.

    Returns:
        By split `num_documents` and `num_text_bytes`; then their sums and the counts of all that was dropped.

    Raises:
        ProsemillError: a file is broken, not text or outside its root, nothing is found, or the network fails.
    """
    source = open_source(section.corpus)
    fingerprint = sha256_of_value([FORMAT, as_plain(section.corpus), section.num_shards, source.state()])[:16]
    with alone("corpus"):
        partition = read_or_make_partition(source, fingerprint, num_shards=section.num_shards, max_documents=section.corpus.max_documents)
        rows = _write_shards(partition, section, output)
        facts = {**partition.facts, "official_splits": partition.official}
        write_durably(output / SOURCE_FILE, json.dumps(facts, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
        remove_partition(partition)
    return _metrics(rows, partition)


def open_source(corpus: Corpus) -> Source:
    """The source that a corpus section describes."""
    match corpus:
        case WheelCorpus():
            return WheelSource(corpus)
        case FilesCorpus():
            return FilesSource(corpus)
        case PythonSourceCorpus():
            return PythonSource(corpus)
        case HubCorpus():
            return open_hub(corpus)


def _write_shards(partition: Partition, section: Download, output: Path) -> list[Row]:
    """The second pass; returns the manifest's rows."""
    rule = SplitRule(validation_share=section.validation_share, test_share=section.test_share, official=frozenset(partition.official))
    tasks = [
        ShardTask(
            outputs=tuple(f"{split}/shard-{index:05}.parquet" for split in SPLITS),
            inputs=(digest,),
            path=partition.path(index),
            rule=rule,
            limit=partition.limit,
        )
        for index, digest in enumerate(partition.digests)
    ]
    config = {
        "format": FORMAT,
        "validation_share": section.validation_share,
        "test_share": section.test_share,
        "official_splits": partition.official,
        "limit": partition.limit,
    }
    return run_shards("download", write_shard, tasks, config=config, output=output, measure="num_documents")


def _metrics(rows: list[Row], partition: Partition) -> dict[str, Any]:
    def total(chosen: list[Row], fact: str) -> int:
        return sum(int(row[fact]) for row in chosen)

    counts = ("num_documents", "num_text_bytes")
    by_split = {split: {count: total(rows_of_split(rows, split), count) for count in counts} for split in SPLITS}
    sums = {count: total(rows, count) for count in (*counts, "num_exact_duplicates")}
    return {**by_split, **sums, **partition.dropped}
