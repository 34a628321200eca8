"""Resumable checkpoints of one run, each whole or not there at all.

    checkpoints = Checkpoints(Path(".checkpoints/0123456789abcdef"))
    with checkpoints.writing(step=20) as folder:
        ...  # write files into the folder
    checkpoints.keep({20})
    step = checkpoints.newest()

A checkpoint is written under a temporary name and its files are synced; `COMPLETE`, the list of its files with their sizes and digests,
comes last; then the folder is renamed and its parent synced. What a kill, a full disk or a failing one left without all that its
`COMPLETE` lists is never resumed: an older checkpoint is.
"""

import json
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from prosemill.console import say
from prosemill.digests import sha256_of_file
from prosemill.shards import sync_folder, write_durably

COMPLETE = "COMPLETE"
PREFIX = "checkpoint-"  # Trainer's own
PART = ".part"


class Checkpoints:
    """The checkpoints of a run by their optimiser steps.

    Args:
        folder: Where they lie; made with the first. Nothing else writes there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step lies, whether it is there or not."""
        return self._folder / f"{PREFIX}{step}"

    @contextmanager
    def writing(self, step: int) -> Iterator[Path]:
        """An empty folder that becomes the step's checkpoint when the block ends without an error."""
        target = self.path(step)
        part = target.with_name(target.name + PART)
        _remove(part)
        part.mkdir(parents=True)
        sync_folder(self._folder.parent)
        try:
            yield part
            _seal(part)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)  # a full disk gets its space back
            raise
        _remove(target)
        part.rename(target)
        sync_folder(self._folder)

    def newest(self) -> int | None:
        """The latest step whose checkpoint is whole; None where there is none. Those that are not whole are deleted, and it is said."""
        for part in self._folder.glob(f"*{PART}"):
            _remove(part)
        faults = {step: self.fault(step) for step in self.steps()}
        for step, fault in faults.items():
            if fault is not None:
                self.delete(step, because=fault)
        return max((step for step, fault in faults.items() if fault is None), default=None)

    def fault(self, step: int) -> str | None:
        """What is wrong with a step's checkpoint; None if it is whole."""
        folder = self.path(step)
        try:
            listed = json.loads((folder / COMPLETE).read_text(encoding="utf-8"))
            for name, about in listed.items():
                path = folder / name
                if path.stat().st_size != about["num_bytes"] or sha256_of_file(path) != about["sha256"]:
                    return f"{name} has changed"
        except (FileNotFoundError, NotADirectoryError) as error:
            return f"{Path(error.filename).name} is missing"
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return f"{COMPLETE} is broken: {error}"
        return None

    def delete(self, step: int, *, because: str) -> None:
        """Delete a checkpoint that cannot be used, and say why."""
        say(f"the checkpoint of step {step} is of no use and is deleted: {because}")
        _remove(self.path(step))

    def steps(self) -> list[int]:
        """The steps that there are checkpoints of, whole or not."""
        return [int(path.name.removeprefix(PREFIX)) for path in self._folder.glob(f"{PREFIX}*") if not path.name.endswith(PART)]

    def keep(self, steps: Collection[int]) -> None:
        """Delete the checkpoints of all other steps."""
        for step in self.steps():
            if step not in steps:
                _remove(self.path(step))

    def clear(self) -> None:
        """Delete all of them."""
        self.keep(())
        shutil.rmtree(self._folder, ignore_errors=True)


def _seal(folder: Path) -> None:
    """Have the disk hold all files of a folder, and list them in `COMPLETE`."""
    listed = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        listed[path.relative_to(folder).as_posix()] = {"num_bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
    for path in (path for path in folder.rglob("*") if path.is_dir()):
        sync_folder(path)
    write_durably(folder / COMPLETE, json.dumps(listed, indent=2, sort_keys=True) + "\n")


def _remove(folder: Path) -> None:
    """Delete a folder, what calls it complete first."""
    if folder.exists():
        (folder / COMPLETE).unlink(missing_ok=True)
        shutil.rmtree(folder)
