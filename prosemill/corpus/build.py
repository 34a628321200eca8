"""From a section of params to `data/corpus`: chooses the source, runs the passes, writes SOURCE.json, adds up the metrics."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from prosemill.corpus.contamination import Contamination, find_contaminated, write_evaluation_runs
from prosemill.corpus.document import Source
from prosemill.corpus.files import FilesSource
from prosemill.corpus.hub import open_hub
from prosemill.corpus.parquet import UNPACKED
from prosemill.corpus.plan import DROPPED, Splits, drop_near, plan_splits
from prosemill.corpus.python_source import PythonSource
from prosemill.corpus.shard import ShardTask, write_shard
from prosemill.corpus.splits import SplitRule
from prosemill.corpus.units import FORMAT, Store, read_units
from prosemill.corpus.wheel import WheelSource
from prosemill.digests import sha256_of_file
from prosemill.locks import alone
from prosemill.params import Corpus, Download, FilesCorpus, HubCorpus, PythonSourceCorpus, WheelCorpus, as_plain
from prosemill.shards import Row, rows_of_split, run_shards, write_durably
from prosemill.workspace import SHARD_WORK, SPLITS

SOURCE_FILE = "SOURCE.json"


def build_corpus(section: Download, output: Path) -> dict[str, Any]:
    """Read the corpus, drop what is empty, there twice or evaluation text in the train split, split it, and write it as Parquet.

    A killed call goes on where it stopped, and the bytes written do not depend on the number of workers, the machine or the kill.

    Args:
        section: Params; all but `model` counts here.
        output: Folder that is made anew: `<split>/shard-00000.parquet` …, MANIFEST.jsonl, SOURCE.json.

    Returns:
        `name`; by split `num_documents` and `num_text_bytes`; then their sums, the counts of all that was dropped, and
        `num_evaluation_documents_in_training`, whose text the dropped `num_contaminated` documents hold.

    Raises:
        ProsemillError: a file is broken, not text or outside its root, nothing is found, or the network fails.
    """
    with alone(SHARD_WORK / "corpus.lock", "corpus"):
        scratch = _empty_scratch()
        source = open_source(section.corpus)
        rule = SplitRule(validation_share=section.validation_share, test_share=section.test_share, official=frozenset())
        store = read_units(
            source,
            about=as_plain(section.corpus),
            num_shards=section.num_shards,
            rule=rule,
            near_duplicate_threshold=section.near_duplicate_threshold,
            contamination_words=section.contamination_words,
        )
        rule = replace(rule, official=frozenset(store.official))
        splits, dropped = plan_splits(store, rule, section.corpus.max_documents)
        dropped["num_near_duplicates"] = drop_near(store, splits, section.near_duplicate_threshold)
        dropped |= _drop_contaminated(store, splits, section.contamination_words, scratch / "runs")
        rows = _write_shards(store, splits, scratch / "splits", output)
        facts = {**source.facts(store.documents_sha256), "official_splits": store.official}
        write_durably(output / SOURCE_FILE, json.dumps(facts, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
        _free_disk(store, scratch)
    return {"name": section.corpus.name, **_metrics(rows, {**store.dropped, **dropped})}


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


def _empty_scratch() -> Path:
    """A folder for what the passes tell each other, made anew; also removes files that a killed run unpacked."""
    scratch = SHARD_WORK / "corpus-plan"
    for stale in (scratch, *SHARD_WORK.glob(f"{UNPACKED}*")):
        shutil.rmtree(stale, ignore_errors=True)
    scratch.mkdir(parents=True)
    return scratch


def _free_disk(store: Store, scratch: Path) -> None:
    """Remove the passes' files once the corpus is written."""
    for folder in (scratch, *SHARD_WORK.glob("check-*"), store.folder):
        shutil.rmtree(folder)


def _drop_contaminated(store: Store, splits: Splits, num_words: int | None, runs: Path) -> dict[str, int]:
    """Mark training documents that hold evaluation text as dropped; the counts by metric name."""
    found: Contamination | None = None
    if num_words is not None and write_evaluation_runs(store, splits, runs):
        found = find_contaminated(store, splits, runs, num_words)
        splits[found.documents] = DROPPED
    return {
        "num_contaminated": len(found.documents) if found else 0,
        "num_evaluation_documents_in_training": found.num_evaluation_documents if found else 0,
    }


def _write_shards(store: Store, splits: Splits, path: Path, output: Path) -> list[Row]:
    """The second pass; returns the manifest's rows."""
    splits.tofile(path)
    inputs = (store.texts_sha256, sha256_of_file(path))
    tasks = [
        ShardTask(
            outputs=tuple(f"{split}/shard-{index:05}.parquet" for split in SPLITS),
            inputs=inputs,
            index=index,
            num_shards=store.num_shards,
            units=tuple(store.path(unit, "texts").with_suffix("") for unit in range(len(store.rows))),
            starts=tuple(store.starts),
            splits=path,
        )
        for index in range(store.num_shards)
    ]
    return run_shards("download", write_shard, tasks, config={"format": FORMAT}, output=output, measure="num_documents")


def _metrics(rows: list[Row], dropped: dict[str, int]) -> dict[str, Any]:
    def total(chosen: list[Row], fact: str) -> int:
        return sum(int(row[fact]) for row in chosen)

    counts = ("num_documents", "num_text_bytes")
    by_split = {split: {count: total(rows_of_split(rows, split), count) for count in counts} for split in SPLITS}
    return {**by_split, **{count: total(rows, count) for count in counts}, **dropped}
