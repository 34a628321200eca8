"""Contamination: text of the evaluation splits inside training documents (Brown et al. 2020, appendix C).

    num_runs = write_evaluation_runs(store, splits, path)
    found = find_contaminated(store, splits, path, 13)

The runs of 13 words of all validation and test documents are one sorted file of hashes, which the workers map into memory together. A
training document that holds one of them is dropped; an evaluation document shorter than a run is compared whole, with training documents
as short. The evaluation splits stay as they are.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy
from numpy.typing import NDArray

from prosemill.corpus.frames import frame_headers, frame_text
from prosemill.corpus.near_duplicates import Places
from prosemill.corpus.ngrams import Hashes, is_in, ngram_hashes
from prosemill.corpus.plan import Splits
from prosemill.corpus.units import Store, code_of
from prosemill.digests import sha256_of_file
from prosemill.shards import HashingWriter, Row, Task, finish_shards

KINDS = ("contaminated", "runs")


@dataclass(frozen=True, kw_only=True)
class CheckTask(Task):
    """A unit, whose training documents are compared with the evaluation splits."""

    texts: Path
    """The unit's texts."""
    is_training: bytes
    """One byte per document of the unit: 1 for those to check."""
    runs: Path
    """The sorted hashes of the evaluation splits' runs of words."""
    num_words: int
    """Words of a run."""


@dataclass(frozen=True)
class Contamination:
    """What the check found."""

    documents: Places
    """Training documents that hold evaluation text."""
    num_evaluation_documents: int
    """Evaluation documents whose text they hold."""


def write_evaluation_runs(store: Store, splits: Splits, path: Path) -> int:
    """Write the hashes of the evaluation splits' runs of words, sorted and each once, and return their number.

    Memory is 8 bytes a word of the evaluation splits.
    """
    runs = numpy.concatenate([_evaluation_runs(store, splits, unit)[1].copy() for unit in range(len(store.rows))])
    runs.sort()
    runs = runs[numpy.append(True, runs[1:] != runs[:-1])[: len(runs)]]
    runs.tofile(path)
    return len(runs)


def find_contaminated(store: Store, splits: Splits, runs: Path, num_words: int) -> Contamination:
    """Look for the evaluation splits' runs of words in every training document, unit by unit, and resume where a kill stopped it."""
    runs_sha256 = sha256_of_file(runs)
    tasks = []
    for unit, row in enumerate(store.rows):
        is_training = (splits[store.starts[unit] : store.starts[unit + 1]] == code_of("train")).tobytes()
        tasks.append(
            CheckTask(
                outputs=tuple(f"{unit:06}.{kind}" for kind in KINDS),
                inputs=(row["sha256"], hashlib.sha256(is_training).hexdigest(), runs_sha256),
                texts=store.path(unit, "texts"),
                is_training=is_training,
                runs=runs,
                num_words=num_words,
            )
        )
    folder, _ = finish_shards("check", check_unit, tasks, config={"num_words": num_words})
    units = range(len(store.rows))
    documents = [numpy.fromfile(folder / f"{unit:06}.contaminated", dtype="<i8") + store.starts[unit] for unit in units]
    held = numpy.unique(numpy.concatenate([numpy.fromfile(folder / f"{unit:06}.runs", dtype="<u8") for unit in units]))
    return Contamination(numpy.concatenate(documents), sum(_count_holders(store, splits, unit, held) for unit in units))


def check_unit(task: CheckTask, writers: Mapping[str, HashingWriter]) -> dict[str, Row]:
    """Write the places of a unit's contaminated documents and the hashes of the runs found in them."""
    contaminated, held = task.outputs
    runs = numpy.memmap(task.runs, dtype="<u8", mode="r")
    places: list[int] = []
    found: list[Hashes] = []
    with task.texts.open("rb") as file:
        for (place, *_), offset, size in frame_headers(file):
            if task.is_training[place]:
                hits = _hits(frame_text(file, offset, size), task.num_words, runs)
                if len(hits):
                    places.append(place)
                    found.append(hits)
    writers[contaminated].write(numpy.sort(numpy.array(places, dtype="<i8")).tobytes())
    writers[held].write(numpy.unique(numpy.concatenate(found)).tobytes() if found else b"")
    return {name: {} for name in task.outputs}


def _hits(text: bytes, num_words: int, runs: Hashes) -> Hashes:
    """The hashes of a text's runs that are among the given ones."""
    pieces = [hashes[is_in(hashes, runs)] for hashes in ngram_hashes(text, num_words)]
    return numpy.concatenate(pieces) if pieces else numpy.empty(0, dtype=numpy.uint64)


def _evaluation_runs(store: Store, splits: Splits, unit: int) -> tuple[NDArray[numpy.uint32], Hashes]:
    """The runs of a unit's evaluation documents: the document's place in the unit, and the hash."""
    rows = store.ngrams(unit)
    mine = splits[store.starts[unit] : store.starts[unit + 1]][rows["document"]]
    rows = rows[(mine == code_of("validation")) | (mine == code_of("test"))]
    return rows["document"], rows["hash"]


def _count_holders(store: Store, splits: Splits, unit: int, held: Hashes) -> int:
    """Evaluation documents of a unit that have one of the given runs."""
    documents, hashes = _evaluation_runs(store, splits, unit)
    return len(numpy.unique(documents[is_in(hashes, held)]))
