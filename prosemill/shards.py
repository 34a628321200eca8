"""Pure work on shards: parallel, resumable after a kill, with the same bytes on every machine.

    rows = run_shards("tokenize", encode_shard, tasks, config={"tokenizer": digest}, output=TOKENS)

A stage is a list of tasks and one pure function. Each task writes its files under temporary names in `.shards/<stage>-<fingerprint>/`,
syncs and renames them, and writes their sidecars last, so a file with a sidecar is whole. A second run skips what is whole: a kill costs at
most the shards in work. When all are done they are hard-linked into the output folder with `MANIFEST.jsonl`, the sidecars in order
of their names: no times, no host names.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from prosemill.console import progress
from prosemill.digests import sha256_of_file, sha256_of_value
from prosemill.errors import ProsemillError
from prosemill.workspace import SHARD_WORK

MANIFEST = "MANIFEST.jsonl"

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One shard's work. Subclasses add what the work needs to know; all of it must pickle."""

    outputs: tuple[str, ...]
    """Files that the work writes, as paths below the output folder."""
    inputs: tuple[str, ...]
    """Digests of everything that the work reads."""


class HashingWriter:
    """A binary file, open for writing, that hashes what passes through it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash, self.num_bytes = file, hashlib.sha256(), 0

    def write(self, data: Any) -> int:
        """Append bytes, or anything with the buffer protocol."""
        view = memoryview(data).cast("B")
        self._file.write(view)
        self._hash.update(view)
        self.num_bytes += len(view)
        return len(view)

    def sha256(self) -> str:
        """SHA-256 of what was written so far, in hexadecimal."""
        return self._hash.hexdigest()

    # What pyarrow asks of a file object beside `write`.
    closed = False

    def flush(self) -> None:
        self._file.flush()

    def tell(self) -> int:
        return self.num_bytes

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        """The engine closes the file; a library that closes its writer must not."""


AnyTask = TypeVar("AnyTask", bound=Task)
Work = Callable[[AnyTask, Mapping[str, HashingWriter]], Mapping[str, Row]]
"""A pure function: writes each of the task's outputs to its writer and returns, by output, the facts for its manifest row."""


def num_workers() -> int:
    """Processes for shard work: `PROSEMILL_WORKERS`, or else the processors this process may use. It never changes a result."""
    given = os.environ.get("PROSEMILL_WORKERS")
    if given is None:
        return len(os.sched_getaffinity(0))
    if not given.isdecimal() or int(given) < 1:
        raise ProsemillError(f"PROSEMILL_WORKERS is {given!r}: set it to a positive whole number or unset it")
    return int(given)


def run_shards(stage: str, work: Work[AnyTask], tasks: Sequence[AnyTask], *, config: Row, output: Path) -> list[Row]:
    """Do all tasks that are not done yet and put their files and the manifest into `output`.

    Args:
        stage: Name of the stage; also names the folder of unfinished work.
        work: A function of a module's top level, so that it can be sent to another process.
        tasks: The shards, none of whose outputs overlap.
        config: Everything beside the inputs that the work's result depends on.
        output: Folder that is made anew; emptied if it exists.

    Returns:
        The manifest's rows: `file`, `sha256`, `num_bytes`, `inputs`, `config` and the work's facts.
    """
    config_digest = sha256_of_value(config)
    plan = sorted([list(task.outputs), list(task.inputs)] for task in tasks)
    scratch = SHARD_WORK / f"{stage}-{sha256_of_value([config_digest, plan])[:16]}"
    for stale in SHARD_WORK.glob(f"{stage}-*"):
        if stale != scratch:
            shutil.rmtree(stale)
    finish = partial(_finish_task, work, scratch, config_digest)
    with progress(stage, total=len(tasks), unit="shards") as bar:
        rows: list[Row] = []
        for task_rows in _in_processes(finish, tasks):
            rows += task_rows
            bar.advance()
    rows.sort(key=lambda row: str(row["file"]))
    _publish(rows, scratch, output)
    return rows


def read_manifest(folder: Path) -> list[Row]:
    """The manifest of a folder that `run_shards` wrote. Raises `ProsemillError` if it is missing or broken."""
    path = folder / MANIFEST
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        raise ProsemillError(f"{path} is missing: run `dvc repro` to make it") from None
    except ValueError as error:
        raise ProsemillError(f"{path} is broken ({error}): delete the folder and run `dvc repro`") from None


def rows_of_split(rows: Sequence[Row], split: str) -> list[Row]:
    """The manifest's rows whose file lies in the split's folder, in order."""
    return [row for row in rows if str(row["file"]).startswith(f"{split}/")]


def _in_processes(finish: Callable[[AnyTask], list[Row]], tasks: Sequence[AnyTask]) -> Iterator[list[Row]]:
    workers = min(num_workers(), len(tasks))
    if workers <= 1:
        yield from map(finish, tasks)
        return
    # A forked child would inherit the threads' locks of tokenizers and Arrow: start clean ones.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent) as pool:
        futures = [pool.submit(finish, task) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def end_with_parent() -> None:
    """End this worker when its parent dies, however it dies: a worker of a killed stage must not write on."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _finish_task(work: Work[AnyTask], scratch: Path, config_digest: str, task: AnyTask) -> list[Row]:
    done = [_read_sidecar(scratch / name) for name in task.outputs]
    if all(row is not None for row in done):
        return [row for row in done if row is not None]
    rows: list[Row] = []
    with ExitStack() as stack:
        files: dict[str, BinaryIO] = {}
        for name in task.outputs:
            path = _temporary(scratch / name)
            path.parent.mkdir(parents=True, exist_ok=True)
            files[name] = stack.enter_context(path.open("wb"))
        writers = {name: HashingWriter(file) for name, file in files.items()}
        facts = work(task, writers)
        for name, file in files.items():
            file.flush()
            os.fsync(file.fileno())
            header = {"file": name, "sha256": writers[name].sha256(), "num_bytes": writers[name].num_bytes}
            rows.append({**header, "inputs": list(task.inputs), "config": config_digest, **facts[name]})
    for name in task.outputs:
        _temporary(scratch / name).replace(scratch / name)
    for name, row in zip(task.outputs, rows, strict=True):
        write_durably(_sidecar(scratch / name), _as_line(row))
    return rows


def write_durably(path: Path, text: str) -> None:
    """Write a small file so that it is there whole or not at all: temporary name, sync, rename, sync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(path).open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    _temporary(path).replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _publish(rows: Sequence[Row], scratch: Path, output: Path) -> None:
    if output.exists():
        shutil.rmtree(output)
    for row in rows:
        target = output / row["file"]
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(scratch / row["file"], target)
    write_durably(output / MANIFEST, "".join(map(_as_line, rows)))


def _read_sidecar(path: Path) -> Row | None:
    """The row of a finished file, or None when it must be made (again)."""
    try:
        row: Row = json.loads(_sidecar(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    if not path.is_file() or path.stat().st_size != row["num_bytes"] or sha256_of_file(path) != row["sha256"]:
        return None
    return row


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _as_line(row: Row) -> str:
    return json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n"
