"""Between the passes: which documents stay, and in which split, decided on the records of the first pass.

    splits = plan_splits(store, rule, max_documents=None)
    drop_near(store, splits, 0.8)

The result is one byte per document: its split's place in `SPLITS`, or `DROPPED`. Memory is some tens of bytes per document; digests are
looked at slice by slice.
"""

from collections.abc import Iterator
from typing import Any

import numpy
from numpy.typing import NDArray

from prosemill.corpus.near_duplicates import Places, drop_near_duplicates
from prosemill.corpus.splits import SplitRule
from prosemill.corpus.units import NO_SPLIT, Store, code_of
from prosemill.errors import ProsemillError
from prosemill.workspace import SPLITS

DROPPED = 255
SLICE_DOCUMENTS = 1 << 21  # digests held at a time

Splits = NDArray[numpy.uint8]


def plan_splits(store: Store, rule: SplitRule, max_documents: int | None) -> tuple[Splits, dict[str, int]]:
    """The split of every document that is within the limit and the first of its text, and the counts of all others by metric name.

    Raises:
        ProsemillError: an id stands for two texts.
    """
    is_kept = _is_within(store, max_documents)
    num_over = int((~is_kept).sum())
    _refuse_ambiguous_ids(store, is_kept)
    num_copies = _drop_exact_duplicates(store, is_kept)
    carved_codes, official_codes = range(len(SPLITS)), range(NO_SPLIT + 1)
    names = [*SPLITS, None]
    table = [[code_of(rule.resolve(names[official], SPLITS[carved])) for carved in carved_codes] for official in official_codes]
    splits = numpy.array(table, dtype=numpy.uint8)[store.column("official"), store.column("carved")]
    splits[~is_kept] = DROPPED
    return splits, {"num_over_limit": num_over, "num_exact_duplicates": num_copies}


def drop_near(store: Store, splits: Splits, threshold: float | None) -> int:
    """Mark near-duplicates as dropped and return their number.

    A test document stays before a validation document, that before one for training, whether the source or a hash put it there; so no
    near copy of evaluation text is trained on. Among equals the first in the source's order stays.
    """
    if threshold is None:
        return 0
    order = numpy.concatenate([numpy.flatnonzero(splits == code_of(split)) for split in ("test", "validation", "train")])
    copies = drop_near_duplicates(store, order, threshold)
    splits[copies] = DROPPED
    return len(copies)


def _is_within(store: Store, max_documents: int | None) -> NDArray[numpy.bool_]:
    """Which documents stay: those of the `max_documents` ids with the smallest stable hash, so the choice does not depend on the order."""
    if max_documents is None:
        return numpy.ones(store.num_documents, dtype=bool)
    shares = store.column("limit")
    distinct = numpy.unique(shares)
    within: NDArray[numpy.bool_] = shares <= distinct[min(max_documents, len(distinct)) - 1]
    return within


def _slices(store: Store, field: str, is_kept: NDArray[numpy.bool_]) -> Iterator[tuple[Places, NDArray[Any]]]:
    """All kept documents, in slices by the first byte of a digest: equal digests are in one slice. Their places, ascending, and records."""
    number = min(store.num_documents // SLICE_DOCUMENTS + 1, 256)
    for index in range(number):
        places, records = [], []
        for unit in range(len(store.rows)):
            documents, start = store.documents(unit), store.starts[unit]
            first_bytes = documents[field].astype("S1").view(numpy.uint8).astype(numpy.uint32)
            mine = numpy.flatnonzero(is_kept[start : start + len(documents)] & (first_bytes * number >> 8 == index))
            places.append(mine + start)
            records.append(documents[mine])
        yield numpy.concatenate(places), numpy.concatenate(records)


def _drop_exact_duplicates(store: Store, is_kept: NDArray[numpy.bool_]) -> int:
    """Keep one document per text and return the number of the others.

    An official test split's copy stays before a validation split's, that before any other, so no evaluation text is trained on; among
    equals the first in the source's order stays.
    """
    ranks = numpy.full(NO_SPLIT + 1, 2)
    ranks[code_of("test")], ranks[code_of("validation")] = 0, 1
    num_copies = 0
    for places, records in _slices(store, "text", is_kept):
        order = numpy.argsort(ranks[records["official"]], kind="stable")
        order = order[numpy.argsort(records["text"][order], kind="stable")]
        texts = records["text"][order]
        copies = places[order[1:][texts[1:] == texts[:-1]]]
        is_kept[copies] = False
        num_copies += len(copies)
    return num_copies


def _refuse_ambiguous_ids(store: Store, is_kept: NDArray[numpy.bool_]) -> None:
    """Raise `ProsemillError` if an id stands for two texts."""
    for places, records in _slices(store, "id", is_kept):
        order = numpy.argsort(records["id"], kind="stable")
        ids, texts = records["id"][order], records["text"][order]
        ambiguous = order[1:][(ids[1:] == ids[:-1]) & (texts[1:] != texts[:-1])]
        if len(ambiguous):
            same_id = numpy.flatnonzero(records["id"] == records["id"][ambiguous[0]])
            _name_ambiguous(store, places[same_id], records["text"][same_id])


def _name_ambiguous(store: Store, places: Places, texts: NDArray[Any]) -> None:
    other = int(numpy.flatnonzero(texts != texts[0])[0])
    first, second = (_name(store, int(places[index])) for index in (0, other))
    raise ProsemillError(f"the document id {first} stands for another text in {second}: give each text an id of its own, or drop the key")


def _name(store: Store, place: int) -> str:
    unit = int(numpy.searchsorted(store.starts, place, side="right")) - 1
    wanted = place - store.starts[unit]
    return next(f"{header[1]!r} from {header[2]}" for header in store.headers(unit) if header[0] == wanted)
