"""Pure work on shards: parallel, resumable after a kill, with the same bytes on every machine.

    rows = run_shards("tokenize", encode_shard, tasks, config={"tokenizer": digest}, output=TOKENS)

A stage is a list of tasks and one pure function. Each task writes its files under temporary names in `.shards/<stage>-<fingerprint>/`,
syncs and renames them, and writes their sidecars last, so a file with a sidecar is whole. A second run skips what is whole: a kill costs at
most the shards in work. When all are done they are hard-linked into the output folder with `MANIFEST.jsonl`, the sidecars in order
of their names: no times, no host names. The fingerprint covers inputs, config and Prosemill's own code; one run of a stage at a time
works in a workspace.
"""

import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from prosemill.console import progress, say
from prosemill.digests import sha256_of_file, sha256_of_tree, sha256_of_value
from prosemill.errors import ProsemillError
from prosemill.locks import alone
from prosemill.workspace import SHARD_WORK

MANIFEST = "MANIFEST.jsonl"
CANNOT_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP)  # another disk, or a file system without hard links

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One shard's work. Subclasses add what the work needs to know; all of it must pickle."""

    outputs: tuple[str, ...]
    """Files that the work writes, as paths below the output folder."""
    inputs: tuple[str, ...]
    """Digests of everything that the work reads."""


class HashingWriter:
    """A binary file, open for writing, that hashes what passes through it. A full disk raises an `OSError` that names the file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash, self.num_bytes = file, hashlib.sha256(), 0

    def write(self, data: Any) -> int:
        """Append bytes, or anything with the buffer protocol."""
        view = memoryview(data).cast("B")
        with _named(self._file):
            _write_all(self._file, view)
        self._hash.update(view)
        self.num_bytes += len(view)
        return len(view)

    def sha256(self) -> str:
        """SHA-256 of what was written so far, in hexadecimal."""
        return self._hash.hexdigest()

    def sync(self) -> None:
        """Have the disk hold what was written."""
        with _named(self._file):
            self._file.flush()
            os.fsync(self._file.fileno())

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


@dataclass(frozen=True, kw_only=True)
class _Finished:
    rows: list[Row]
    was_done: bool  # by an earlier run


def num_workers() -> int:
    """Processes for shard work: `PROSEMILL_WORKERS`, or else the processors this process may use. It never changes a result."""
    given = os.environ.get("PROSEMILL_WORKERS")
    if given is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not given.isdecimal() or int(given) < 1:
        raise ProsemillError(f"PROSEMILL_WORKERS is {given!r}: set it to a positive whole number or unset it")
    return int(given)


def run_shards(
    stage: str, work: Work[AnyTask], tasks: Sequence[AnyTask], *, config: Row, output: Path, measure: str | None = None
) -> list[Row]:
    """Do all tasks that are not done yet and put their files and the manifest into `output`.

    Args:
        stage: Name of the stage; also names the folder of unfinished work.
        work: A function of a module's top level, so that it can be sent to another process.
        tasks: The shards, none of whose outputs overlap.
        config: Everything beside the inputs that the work's result depends on.
        output: Folder that is made anew; emptied if it exists.
        measure: Fact of the rows (such as `num_tokens`) whose sum per second is shown beside the progress.

    Returns:
        The manifest's rows: `file`, `sha256`, `num_bytes`, `inputs`, `config` and the work's facts.

    Raises:
        ProsemillError: the stage runs already in this workspace, or the system ended a worker.
        OSError: the disk is full; `filename` says where.
    """
    with alone(SHARD_WORK / f"{stage}.lock", stage):
        scratch, rows = _finish_in_scratch(stage, work, tasks, config, measure)
        _publish(rows, scratch, output)
    return rows


def finish_shards(
    stage: str, work: Work[AnyTask], tasks: Sequence[AnyTask], *, config: Row, measure: str | None = None
) -> tuple[Path, list[Row]]:
    """The same for a pass inside a stage, whose files nobody else reads.

    Returns:
        The folder that holds the tasks' files, for the caller to delete when the stage is done, and the rows as of `run_shards`.

    Raises:
        ProsemillError, OSError: as `run_shards`.
    """
    with alone(SHARD_WORK / f"{stage}.lock", stage):
        return _finish_in_scratch(stage, work, tasks, config, measure)


def _finish_in_scratch(
    stage: str, work: Work[AnyTask], tasks: Sequence[AnyTask], config: Row, measure: str | None
) -> tuple[Path, list[Row]]:
    config_digest = sha256_of_value(config)
    plan = sorted([list(task.outputs), list(task.inputs)] for task in tasks)
    code = sha256_of_tree([Path(__file__).parent])
    scratch = SHARD_WORK / f"{stage}-{sha256_of_value([config_digest, plan, code])[:16]}"
    _delete_stale(stage, scratch)
    try:
        rows = _finish_all(stage, partial(_finish_task, work, scratch, config_digest), tasks, measure)
    finally:
        _delete_parts(scratch)  # of workers that were ended: a full disk gets its space back
    return scratch, rows


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


class _Rate:
    """Work per second of this run; shards that an earlier run finished do not count."""

    def __init__(self, measure: str | None) -> None:
        self._measure, self._start = measure, time.monotonic()
        self._amount, self.num_kept = 0, 0

    def after(self, task: _Finished) -> str:
        """A remark such as `1,234,567 tokens/s`, or nothing where nothing is measured."""
        if task.was_done:
            self.num_kept += 1
        elif self._measure is not None:
            self._amount += sum(int(row[self._measure]) for row in task.rows)
        if self._measure is None or self._amount == 0:
            return ""
        per_second = self._amount / max(time.monotonic() - self._start, 1e-9)
        return f"{per_second:,.0f} {self._measure.removeprefix('num_')}/s"


def _delete_stale(stage: str, scratch: Path) -> None:
    """Delete the work of other fingerprints, and files that a kill left half written."""
    for stale in SHARD_WORK.glob(f"{stage}-" + "[0-9a-f]" * 16):
        if stale != scratch:
            shutil.rmtree(stale)
    _delete_parts(scratch)


def _delete_parts(scratch: Path) -> None:
    for part in scratch.rglob("*.part"):
        part.unlink(missing_ok=True)


def _finish_all(stage: str, finish: Callable[[AnyTask], _Finished], tasks: Sequence[AnyTask], measure: str | None) -> list[Row]:
    """The rows of all tasks in the order of their files, with progress shown."""
    rate, rows = _Rate(measure), []
    with progress(stage, total=len(tasks), unit="shards") as bar, closing(_in_processes(stage, finish, tasks)) as finished:
        for task in finished:
            rows += task.rows
            bar.advance(note=rate.after(task))
    if rate.num_kept:
        say(f"{stage}: {rate.num_kept} of {len(tasks)} shards were whole from an earlier run and were kept")
    return sorted(rows, key=lambda row: str(row["file"]))


def _in_processes(stage: str, finish: Callable[[AnyTask], _Finished], tasks: Sequence[AnyTask]) -> Generator[_Finished, None, None]:
    workers = min(num_workers(), len(tasks))
    if workers <= 1:
        yield from map(finish, tasks)
        return
    # A forked child would inherit the threads' locks of tokenizers and Arrow: start clean ones.
    context = multiprocessing.get_context("spawn")
    lifeline, held = context.Pipe(duplex=False)
    with lifeline, held, ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with, initargs=(lifeline,)) as pool:
        try:
            for future in as_completed(_submit_all(pool, finish, tasks)):
                yield future.result()
        except BrokenProcessPool:
            raise ProsemillError(
                f"the system ended a worker of {stage}, most often for lack of memory: "
                "set PROSEMILL_WORKERS=1 and run the same command again (finished shards are kept)"
            ) from None
        except BaseException:
            held.close()  # ends the workers now, not after the shards they have in work
            raise


def _submit_all(pool: ProcessPoolExecutor, finish: Callable[[AnyTask], _Finished], tasks: Sequence[AnyTask]) -> list[Future[_Finished]]:
    """Start the workers deaf to Ctrl-C (they inherit this thread's mask): the parent hears it and ends them, without their stack traces."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return [pool.submit(finish, task) for task in tasks]
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with(lifeline: Connection) -> None:
    """End this worker when the parent closes its end of the pipe or dies, however it dies: a worker of a killed stage must not write on."""

    def watch() -> None:
        try:
            lifeline.recv_bytes()
        except (EOFError, OSError):
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _finish_task(work: Work[AnyTask], scratch: Path, config_digest: str, task: AnyTask) -> _Finished:
    done = [_read_sidecar(scratch / name) for name in task.outputs]
    if all(row is not None for row in done):
        return _Finished(rows=[row for row in done if row is not None], was_done=True)
    parts = {name: _temporary(scratch / name) for name in task.outputs}
    try:
        rows = _write_parts(work, task, parts, config_digest)
        for name, part in parts.items():
            part.replace(scratch / name)
    except BaseException:
        for part in parts.values():
            part.unlink(missing_ok=True)  # a full disk gets its space back
        raise
    for name, row in zip(task.outputs, rows, strict=True):
        write_durably(_sidecar(scratch / name), _as_line(row))
    return _Finished(rows=rows, was_done=False)


def _write_parts(work: Work[AnyTask], task: AnyTask, parts: Mapping[str, Path], config_digest: str) -> list[Row]:
    rows: list[Row] = []
    with ExitStack() as stack:
        writers: dict[str, HashingWriter] = {}
        for name, part in parts.items():
            part.parent.mkdir(parents=True, exist_ok=True)
            writers[name] = HashingWriter(stack.enter_context(part.open("wb", buffering=0)))
        facts = work(task, writers)
        for name, writer in writers.items():
            writer.sync()
            header = {"file": name, "sha256": writer.sha256(), "num_bytes": writer.num_bytes}
            rows.append({**header, "inputs": list(task.inputs), "config": config_digest, **facts[name]})
    return rows


def write_durably(path: Path, text: str) -> None:
    """Write a small file so that it is there whole or not at all: temporary name, sync, rename, sync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _temporary(path)
    try:
        with part.open("wb", buffering=0) as file:
            writer = HashingWriter(file)
            writer.write(text.encode("utf-8"))
            writer.sync()
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Have the disk hold a folder's own entries: the names that were made or renamed in it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(file: BinaryIO, view: memoryview) -> None:
    """Write everything: an unbuffered file may take less than it is given."""
    while view:
        view = view[file.write(view) :]


@contextmanager
def _named(file: BinaryIO) -> Iterator[None]:
    """Put the file's name into the system's error, which lacks it for writes to an open file."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = getattr(file, "name", None)
        raise


def _publish(rows: Sequence[Row], scratch: Path, output: Path) -> None:
    _remove(output)
    for row in rows:
        _link(scratch / row["file"], output / row["file"])
    for folder in {(output / row["file"]).parent for row in rows}:
        sync_folder(folder)
    write_durably(output / MANIFEST, "".join(map(_as_line, rows)))


def _remove(output: Path) -> None:
    """Delete the output folder, its manifest first: what is left after a kill has none, so nothing trusts it."""
    if output.is_symlink() or output.is_file():
        output.unlink()
    elif output.exists():
        (output / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(output)


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in CANNOT_LINK:
            raise
        with source.open("rb") as file, target.open("wb", buffering=0) as copy:
            writer = HashingWriter(copy)
            shutil.copyfileobj(file, writer, 1 << 20)
            writer.sync()


def _read_sidecar(path: Path) -> Row | None:
    """The row of a finished file, or None when it must be made (again)."""
    try:
        row: Row = json.loads(_sidecar(path).read_text(encoding="utf-8"))
        whole = path.stat().st_size == row["num_bytes"] and sha256_of_file(path) == row["sha256"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return row if whole else None


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _temporary(path: Path) -> Path:
    """A name of this process's own: a worker that outlives its stage by a moment never writes into another's file."""
    return path.with_name(f"{path.name}.{os.getpid()}.part")


def _as_line(row: Row) -> str:
    return json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n"
