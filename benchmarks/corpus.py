"""A large corpus through download → tokenize → group: memory, speed, and what a kill in the midst of each stage costs.

    python -m benchmarks.corpus --gigabytes 0.2
    python -m benchmarks.corpus                  # 5 GB: about 25 GB of disk and two hours on two cores

The text is phrases of six words from random places of the workspace's corpus (`dvc repro download` makes it) or of `--text`, one word in
fifty with four random letters appended, in documents as long as the corpus's own: new text, whose words are real. One document in a
hundred is an exact copy of an earlier one, one in a hundred a copy with one word changed. It lies in JSON Lines files.

Every stage is run as the process that DVC starts. When half of its shards are done (for download once of the source's units, and once of
the corpus's shards), its whole process group is killed, and it is run again. `done again` counts the shards that the killed run had begun
and the next one did not keep: at most one per worker, as each worker has one shard in work. Memory is the PSS (shared pages counted once)
of all processes of the stage, the largest of a look every 0.1 s; it should be the same for a small corpus, which is run first, with kills
and, by one worker, without: the manifests of both must be the same.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import psutil
import typer
import yaml

from benchmarks.tokens import Peak, collect_texts, watch
from prosemill.corpus.pieces import UNIT_BYTES
from prosemill.params import Download, FilesCorpus, Group, ScratchModel, Tokenize, as_plain
from prosemill.shards import MANIFEST, HashingWriter, Row, Task, run_shards
from prosemill.workspace import BLOCKS, CORPUS, PARAMS, SHARD_WORK, SPLITS, TOKENS

ROOT = Path(__file__).parents[1]
STAGES = ("download", "tokenize", "group")
KILLED_IN = {"download": ("read", "download"), "tokenize": ("tokenize",), "group": ("group",)}  # names of work on shards
LAST_FILES = {"read": "*.texts.json", "download": f"{SPLITS[-1]}/*.json", "tokenize": "*/*.bin.json", "group": "*/*.bin.json"}
MEMORY_LIMIT = 2e9  # bytes
NUM_SHARDS = 64
FILE_BYTES = 200_000_000
SMALL_GIGABYTES = 0.3
PHRASE_WORDS = 6
FRESH_WORDS = 0.02  # share of the words made new
COPIES = 0.01  # share of the documents, of exact and of near copies each
REMEMBERED = 1000  # documents that a copy is chosen from
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, kw_only=True)
class TextTask(Task):
    """One JSON Lines file."""

    texts: Path
    """JSON list of the texts whose phrases are used."""
    num_bytes: int
    """Bytes to reach."""
    seed: int
    """Seed of everything random."""


@dataclass
class Kill:
    """What a kill cost."""

    work: str
    """Name of the work that was under way."""
    seconds: float
    """From the stage's start to the kill."""
    num_begun: int
    """Shards that the killed run had begun, finished ones included."""
    num_kept: int = 0
    """Shards of it that the next run found whole."""


@dataclass
class Stage:
    """What happened to a stage."""

    kills: list[Kill] = field(default_factory=list)
    seconds: float = 0.0
    """Of the run that came to its end."""
    peak: Peak = field(default_factory=Peak)


def write_file(task: TextTask, writers: Mapping[str, HashingWriter]) -> dict[str, Row]:
    """Write documents until the file has its size."""
    (name,) = task.outputs
    num_documents = 0
    for text in documents(json.loads(task.texts.read_text(encoding="utf-8")), random.Random(task.seed)):  # noqa: S311 - words, no secrets
        writers[name].write(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n")
        num_documents += 1
        if writers[name].num_bytes >= task.num_bytes:
            break
    return {name: {"num_documents": num_documents}}


def documents(texts: list[str], generator: random.Random) -> Iterator[str]:
    """New documents for ever, some of them copies."""
    words = [word for text in texts for word in text.split(" ")]
    lengths = [text.count(" ") + 1 for text in texts]
    recent = [fresh_document(words, generator.choice(lengths), generator)]
    while True:
        kind = generator.random()
        if kind < COPIES:
            yield generator.choice(recent)
        elif kind < 2 * COPIES:
            yield with_fresh_words(generator.choice(recent).split(" "), 1, generator)
        else:
            recent.append(fresh_document(words, generator.choice(lengths), generator))
            del recent[:-REMEMBERED]
            yield recent[-1]


def fresh_document(words: list[str], length: int, generator: random.Random) -> str:
    """Phrases from random places, with fresh words."""
    starts = [generator.randrange(len(words)) for _ in range(0, length, PHRASE_WORDS)]
    chosen = [word for start in starts for word in words[start : start + PHRASE_WORDS]]
    return with_fresh_words(chosen, round(len(chosen) * FRESH_WORDS), generator)


def with_fresh_words(words: list[str], number: int, generator: random.Random) -> str:
    """The words as a text, some of them made new by four random letters."""
    for _ in range(number):
        words[generator.randrange(len(words))] += "".join(generator.choices(LETTERS, k=4))
    return " ".join(words)


def make_workspace(root: Path, source: Path, gigabytes: float) -> None:
    """A workspace with files to download from, as the current folder."""
    root.mkdir()
    os.chdir(root)
    (root / "phrases.json").write_text(json.dumps(collect_texts(source)), encoding="utf-8")
    number = max(1, round(gigabytes * 1e9 / FILE_BYTES))
    tasks = [
        TextTask(
            outputs=(f"{seed:03}.jsonl",),
            inputs=(str(gigabytes),),
            texts=root / "phrases.json",
            num_bytes=int(gigabytes * 1e9 / number),
            seed=seed,
        )
        for seed in range(number)
    ]
    run_shards("benchmark-text", write_file, tasks, config={}, output=root / "texts")
    shutil.rmtree(root / SHARD_WORK)
    (root / "texts" / MANIFEST).unlink()  # its name ends like a text's
    corpus = FilesCorpus(source="files", name="texts", root="texts")
    download = Download(corpus=corpus, model=ScratchModel(source="scratch", name="tiny"), num_shards=NUM_SHARDS)
    sections = {"download": download, "tokenize": Tokenize(), "group": Group()}
    plain = {name: json.loads(json.dumps(as_plain(section))) for name, section in sections.items()}
    (root / PARAMS).write_text(yaml.safe_dump(plain), encoding="utf-8")


def run_pipeline(root: Path, processes: int, *, kill: bool) -> dict[str, Stage]:
    """All stages from nothing, each killed half-way or not."""
    stages = {}
    for name in STAGES:
        stage = stages[name] = Stage()
        for work in KILLED_IN[name] if kill else ():
            seconds = run_stage(name, root, processes, stage, killed_in=work)
            stage.kills.append(Kill(work, seconds, len(begun(work, root))))
            print(f"{root.name} corpus: {name} killed in {work} after {seconds:.0f} s")
        stage.seconds = run_stage(name, root, processes, stage, killed_in=None)
        print(f"{root.name} corpus: {name} came to its end after {stage.seconds:.0f} s")
    return stages


def run_stage(name: str, root: Path, processes: int, stage: Stage, killed_in: str | None) -> float:
    """One stage until its end, or until half of some work is finished; its seconds. Notes what it kept of a killed run before."""
    environment = os.environ | {"PROSEMILL_WORKERS": str(processes), "PYTHONPATH": str(ROOT)}
    half = max(1, num_shards(killed_in, root) // 2) if killed_in else 0
    start = time.monotonic()
    with (root / "log").open("w") as log:
        command = [sys.executable, "-m", f"stages.{name}"]
        child = subprocess.Popen(command, cwd=root, env=environment, stderr=log, start_new_session=True)

    def has_ended() -> bool:
        return child.poll() is not None or (killed_in is not None and num_finished(killed_in, root) >= half)

    watch(psutil.Process(child.pid), stage.peak, has_ended)
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        time.sleep(1)  # the workers are of the same group; let the system clear them away
    said = (root / "log").read_text(encoding="utf-8")
    assert child.returncode in (0, -signal.SIGKILL), said
    if killed_in and child.returncode == 0:
        raise SystemExit(f"{name} came to its end before it was killed in {killed_in}: this measures nothing, take a larger corpus")
    for before in stage.kills[-1:]:
        kept = re.search(rf"^{before.work}: (\d+) of \d+ shards were whole", said, re.MULTILINE)
        before.num_kept = int(kept[1]) if kept else 0
    return time.monotonic() - start


def num_shards(work: str, root: Path) -> int:
    """Shards of some work; of units at least so many."""
    if work == "read":
        return sum(max(1, path.stat().st_size // UNIT_BYTES) for path in (root / "texts").glob("*.jsonl"))
    if work == "download":
        return NUM_SHARDS
    return len((root / {"tokenize": CORPUS, "group": TOKENS}[work] / MANIFEST).read_text(encoding="utf-8").splitlines())


def begun(work: str, root: Path) -> set[str]:
    """Names of the shards of which there is any file."""
    return {shard_of(work, path) for path in (root / SHARD_WORK).glob(f"{work}-*/**/*") if path.is_file()}


def num_finished(work: str, root: Path) -> int:
    """How many shards have the sidecar that is written last."""
    return len(list((root / SHARD_WORK).glob(f"{work}-*/{LAST_FILES[work]}")))


def shard_of(work: str, path: Path) -> str:
    """Name of the shard that a file belongs to; one of download's has a file in each split."""
    name = path.name.partition(".")[0]
    return name if work == "download" else f"{path.parent.name}/{name}"


def manifests(root: Path) -> list[str]:
    """What must not depend on kills and workers."""
    return [(root / folder / MANIFEST).read_text(encoding="utf-8") for folder in (CORPUS, TOKENS, BLOCKS)]


def report(root: Path, stages: Mapping[str, Stage], small: Mapping[str, Stage], processes: int) -> None:
    """Print Markdown tables, and what download dropped; then hold them against what they must reach."""
    num_bytes = sum(path.stat().st_size for path in (root / "texts").glob("*.jsonl"))
    print(f"\n{num_bytes / 1e9:.2f} GB of JSON Lines, {processes} processes, each stage killed half-way and run again\n")
    print("| stage | killed in | after, s | shards begun | kept | done again |\n|---|---|---|---|---|---|")
    kills = [(name, kill) for name, stage in stages.items() for kill in stage.kills]
    for name, kill in kills:
        again = kill.num_begun - kill.num_kept
        print(f"| {name} | {kill.work} | {kill.seconds:.0f} | {kill.num_begun} | {kill.num_kept} | {again} |")
    print(f"\n| stage | last run, s | peak PSS, MB | peak PSS of the {SMALL_GIGABYTES} GB corpus, MB |\n|---|---|---|---|")
    for name, stage in stages.items():
        print(f"| {name} | {stage.seconds:.0f} | {stage.peak.pss / 1e6:,.0f} | {small[name].peak.pss / 1e6:,.0f} |")
    metrics = json.loads((root / "metrics/download.json").read_text(encoding="utf-8"))["corpus"]
    print("\n" + ", ".join(f"{name} {value:,}" for name, value in metrics.items() if isinstance(value, int)))
    assert all(kill.num_begun - kill.num_kept <= processes for _, kill in kills)
    assert all(stage.peak.pss < MEMORY_LIMIT for stage in stages.values())


def main(
    gigabytes: Annotated[float, typer.Option(help="Size of the source files, in billions of bytes.")] = 5.0,
    processes: Annotated[int, typer.Option(help="Workers of each stage.")] = 2,
    text: Annotated[Path, typer.Option(help="Corpus folder, Parquet file or JSON list with the text to take phrases from.")] = CORPUS,
) -> None:
    """Measure the first three stages on a large corpus."""
    with tempfile.TemporaryDirectory(prefix="prosemill-benchmark-") as folder:
        root, source = Path(folder), text.resolve()
        small = {}
        for name, kill in (("unkilled", False), ("killed", True)):
            make_workspace(root / name, source, min(gigabytes, SMALL_GIGABYTES))
            small = run_pipeline(root / name, processes if kill else 1, kill=kill)
        assert manifests(root / "killed") == manifests(root / "unkilled")
        print("the manifests of a small corpus, with kills and without, are the same")
        make_workspace(root / "large", source, gigabytes)
        report(root / "large", run_pipeline(root / "large", processes, kill=True), small, processes)
        os.chdir(ROOT)


if __name__ == "__main__":
    typer.run(main)
