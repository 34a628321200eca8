"""Tokenize + group against `datasets.map`: tokens per second and peak memory on the same text with the same number of processes.

    python -m benchmarks.tokens --megabytes 200 --repeats 3
    python -m benchmarks.tokens --megabytes 2000 --no-peer

The text is the corpus again and again, with new ids, until it has the size asked for. Real text keeps bringing new words, which a repeated
one does not; so one word in fifty gets four random letters appended, a fresh word that no cache has seen. Text and tokenizer are those of
the workspace (`dvc repro download` makes them) unless `--text` and `--model` name others.

Our side is timed whole: both stages as the processes that DVC starts, with their imports and disk syncs. The peer, the way of the widely
used example (tokenise batches of 1,000 documents, join and cut them as lists, again in batches of 1,000), is timed without its imports and
without reading the Parquet files into Arrow. CPU seconds are those of all processes of a side, the peer's imports and reading included.
Memory is summed over the processes of each side every 0.1 s: PSS (shared pages counted once) and RSS.
"""

import json
import multiprocessing
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

from prosemill.params import Group, Tokenize, as_plain
from prosemill.shards import HashingWriter, Row, Task, run_shards
from prosemill.workspace import BASE_MODEL, BLOCKS, CORPUS, PARAMS, SPLITS, TOKENS

ROOT = Path(__file__).parents[1]
SHARES = {"train": 0.96, "validation": 0.02, "test": 0.02}
NUM_SHARDS = 8
BLOCK_SIZE = 256
SAMPLING_INTERVAL = 0.1  # seconds between two looks at the memory
FRESH_WORDS = 0.02  # share of the words made new
ROWS_AT_ONCE = 1000


@dataclass
class Peak:
    """Largest sums over a process and its descendants, in bytes."""

    pss: int = 0
    rss: int = 0


@dataclass
class Side:
    """The runs of one side."""

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    num_tokens: int = 0
    peak: Peak = field(default_factory=Peak)

    def rate(self) -> float:
        """Median tokens per second."""
        return self.num_tokens / statistics.median(self.seconds)


@dataclass(frozen=True, kw_only=True)
class TextTask(Task):
    """A corpus shard of repeated text."""

    texts: Path
    """JSON list of the texts to repeat."""
    num_bytes: int
    """UTF-8 bytes to reach."""
    seed: int
    """Seed of the fresh words."""


def write_texts(task: TextTask, writers: Mapping[str, HashingWriter]) -> dict[str, Row]:
    """Write repeated text with fresh words as a corpus shard."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (name,) = task.outputs
    schema = pa.schema([(column, pa.string()) for column in ("document_id", "text", "source", "label")])
    num_documents = num_bytes = 0
    with pq.ParquetWriter(writers[name], schema) as parquet:
        rows: list[dict[str, str | None]] = []
        for text in repeated(read_texts(task.texts), random.Random(task.seed)):  # noqa: S311 - words, no secrets
            rows.append({"document_id": f"{task.seed}-{num_documents}", "text": text, "source": "benchmark", "label": None})
            num_documents, num_bytes = num_documents + 1, num_bytes + len(text.encode())
            if len(rows) == ROWS_AT_ONCE or num_bytes >= task.num_bytes:
                parquet.write_table(pa.Table.from_pylist(rows, schema))
                rows = []
            if num_bytes >= task.num_bytes:
                break
    return {name: {"num_documents": num_documents, "num_text_bytes": num_bytes}}


def repeated(texts: list[str], generator: random.Random) -> Iterator[str]:
    """The texts for ever, from a random one on, with one word in fifty made new by four random letters."""
    start = generator.randrange(len(texts))
    while True:
        for text in texts[start:] + texts[:start]:
            words = text.split(" ")
            for index, word in enumerate(words):
                if generator.random() < FRESH_WORDS:
                    words[index] = word + "".join(generator.choices("abcdefghijklmnopqrstuvwxyz", k=4))
            yield " ".join(words)


@lru_cache(maxsize=1)
def read_texts(path: Path) -> list[str]:
    """A JSON list of texts."""
    texts: list[str] = json.loads(path.read_text(encoding="utf-8"))
    return texts


def collect_texts(source: Path) -> list[str]:
    """The texts of a corpus folder, a Parquet file with a column `text`, or a JSON list."""
    import pyarrow.parquet as pq

    if source.suffix == ".json":
        return read_texts(source)
    files = sorted(source.glob("*/*.parquet")) if source.is_dir() else [source]
    return [text for file in files for text in pq.read_table(file, columns=["text"])["text"].to_pylist()]


def make_workspace(root: Path, source: Path, model: Path, megabytes: float) -> None:
    """A workspace with the text as its corpus, ready for the stages. Must be the current folder."""
    import yaml

    texts = root / "texts.json"
    texts.write_text(json.dumps(collect_texts(source)), encoding="utf-8")
    tasks = [
        TextTask(
            outputs=(f"{split}/shard-{shard:05d}.parquet",),
            inputs=(str(megabytes),),
            texts=texts,
            num_bytes=int(megabytes * 1e6 * SHARES[split] / NUM_SHARDS),
            seed=NUM_SHARDS * SPLITS.index(split) + shard,
        )
        for split in SPLITS
        for shard in range(NUM_SHARDS)
    ]
    run_shards("benchmark-text", write_texts, tasks, config={}, output=root / CORPUS)
    shutil.copytree(model, root / BASE_MODEL, ignore=shutil.ignore_patterns("*.safetensors"))
    sections = {"tokenize": as_plain(Tokenize()), "group": as_plain(Group(block_size=BLOCK_SIZE))}
    (root / PARAMS).write_text(yaml.safe_dump(sections), encoding="utf-8")


def run_ours(root: Path, processes: int) -> tuple[float, Peak]:
    """Both stages from nothing: seconds and peak memory."""
    for folder in (root / ".shards", root / TOKENS, root / BLOCKS):
        shutil.rmtree(folder, ignore_errors=True)
    environment = os.environ | {"PROSEMILL_WORKERS": str(processes), "PYTHONPATH": str(ROOT)}
    start, peak = time.monotonic(), Peak()
    for stage in ("tokenize", "group"):
        child = subprocess.Popen([sys.executable, "-m", f"stages.{stage}"], cwd=root, env=environment)
        watch(psutil.Process(child.pid), peak, partial(_has_ended, child))
        assert child.wait() == 0
    return time.monotonic() - start, peak


def _has_ended(child: "subprocess.Popen[bytes]") -> bool:
    return child.poll() is not None


def run_peer(root: Path, processes: int) -> tuple[float, Peak]:
    """`datasets.map` from nothing: seconds of its two maps and peak memory."""
    shutil.rmtree(root / "peer", ignore_errors=True)
    child = multiprocessing.get_context("spawn").Process(target=map_datasets, args=(root, processes))
    child.start()
    assert child.pid is not None
    peak = Peak()
    watch(psutil.Process(child.pid), peak, lambda: not child.is_alive())
    child.join()
    assert child.exitcode == 0
    return json.loads((root / "peer" / "seconds.json").read_text()), peak


def map_datasets(root: Path, processes: int) -> None:
    """The peer: tokenise, then join and cut in lists, with `datasets.map`."""
    import datasets
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(root / BASE_MODEL, local_files_only=True)
    files = {split: sorted(map(str, (root / CORPUS / split).glob("*.parquet"))) for split in SPLITS}
    corpus = datasets.load_dataset("parquet", data_files=files, cache_dir=str(root / "peer"))

    def tokenise(batch: dict[str, list[str]]) -> Any:
        return tokenizer(batch["text"])

    def cut(batch: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        blocks = {}
        for key, lists in batch.items():
            joined = [value for values in lists for value in values]
            whole = len(joined) // BLOCK_SIZE * BLOCK_SIZE
            blocks[key] = [joined[start : start + BLOCK_SIZE] for start in range(0, whole, BLOCK_SIZE)]
        blocks["labels"] = blocks["input_ids"].copy()
        return blocks

    start = time.monotonic()
    tokens = corpus.map(tokenise, batched=True, num_proc=processes, remove_columns=corpus["train"].column_names)
    tokens.map(cut, batched=True, num_proc=processes)
    (root / "peer" / "seconds.json").write_text(json.dumps(time.monotonic() - start))


def watch(process: psutil.Process, peak: Peak, is_over: Callable[[], bool]) -> None:
    """Raise `peak` to the memory of a process and its descendants until it is over.

    The memory is read in a thread: where much is mapped that takes its time, and the end must not be seen too late.
    """
    over = threading.Event()
    threading.Thread(target=_sample_memory, args=(process, peak, over), daemon=True).start()
    while not is_over():
        time.sleep(SAMPLING_INTERVAL)
    over.set()


def _sample_memory(process: psutil.Process, peak: Peak, over: threading.Event) -> None:
    while not over.wait(SAMPLING_INTERVAL):
        pss = rss = 0
        try:
            for one in [process, *process.children(recursive=True)]:
                memory = one.memory_full_info()
                pss, rss = pss + memory.pss, rss + memory.rss
        except psutil.Error:  # one ended meanwhile: look again
            pass
        peak.pss, peak.rss = max(peak.pss, pss), max(peak.rss, rss)


def cpu_seconds() -> float:
    """Processor time of all descendants that have ended: on a busy machine it tells more than the clock."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def count_tokens(root: Path) -> int:
    """Tokens of all splits, ends of text included; the peer is credited with as many."""
    metrics = json.loads((root / "metrics/tokenize.json").read_text(encoding="utf-8"))
    return sum(int(split["num_tokens"]) for split in metrics["splits"].values())


def report(sides: Mapping[str, Side], megabytes: float, processes: int) -> None:
    """Print a Markdown table: medians of the speed, maxima of the memory."""
    print(f"\n{megabytes:g} MB of text, {processes} processes, median of {len(sides['prosemill'].seconds)} (maximum for memory)\n")
    print("| | tokens | seconds | CPU seconds | tokens/s | peak PSS, MB | peak RSS, MB |\n|---|---|---|---|---|---|---|")
    for name, side in sides.items():
        clock, cpu = statistics.median(side.seconds), statistics.median(side.cpu_seconds)
        memory = f"{side.peak.pss / 1e6:,.0f} | {side.peak.rss / 1e6:,.0f}"
        print(f"| {name} | {side.num_tokens:,} | {clock:.1f} | {cpu:.1f} | {side.rate():,.0f} | {memory} |")
    if len(sides) == 2:
        ours, peer = sides.values()
        ratios = [theirs / mine for mine, theirs in zip(ours.seconds, peer.seconds, strict=True)]
        print(f"\nratio, pair by pair: {', '.join(f'{ratio:.1f}' for ratio in ratios)}; median {statistics.median(ratios):.1f}")


def main(
    megabytes: Annotated[float, typer.Option(help="Size of the text, in millions of UTF-8 bytes.")] = 200.0,
    peer: Annotated[bool, typer.Option(help="Measure datasets.map as well.")] = True,
    processes: Annotated[int, typer.Option(help="Processes of each side.")] = 2,
    repeats: Annotated[int, typer.Option(help="Times each side runs, in turn.")] = 3,
    text: Annotated[Path, typer.Option(help="Corpus folder, Parquet file or JSON list with the text to repeat.")] = CORPUS,
    model: Annotated[Path, typer.Option(help="Model folder whose tokenizer is used.")] = BASE_MODEL,
) -> None:
    """Measure tokenize + group, in turn with datasets.map."""
    sides = {"prosemill": Side(), "datasets.map": Side()} if peer else {"prosemill": Side()}
    runs = {"prosemill": run_ours, "datasets.map": run_peer}
    with tempfile.TemporaryDirectory(prefix="prosemill-benchmark-") as folder:
        root, text, model = Path(folder), text.resolve(), model.resolve()
        os.chdir(root)
        make_workspace(root, text, model, megabytes)
        for _ in range(repeats):
            for name, side in sides.items():
                before = cpu_seconds()
                seconds, peak = runs[name](root, processes)
                side.seconds.append(seconds)
                side.cpu_seconds.append(cpu_seconds() - before)
                side.peak = Peak(pss=max(side.peak.pss, peak.pss), rss=max(side.peak.rss, peak.rss))
                side.num_tokens = count_tokens(root)
        os.chdir(ROOT)
    report(sides, megabytes, processes)


if __name__ == "__main__":
    typer.run(main)
