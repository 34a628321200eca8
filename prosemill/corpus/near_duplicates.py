"""Near-duplicates: documents most of whose runs of five words are the same, by MinHash (Broder 1997) and banding (Leskovec et al. 2014).

    signatures = numpy.stack([signature(text) for text in texts])
    keys = band_keys(signatures, rows_of_band(0.8))
    copies = drop_near_duplicates(store, order, 0.8)

A signature is 128 minima of random permutations, of each 16 bits are kept: the share that two documents have in common estimates the
Jaccard similarity of their runs of words, with a standard error of 0.035 at 0.8. Documents that agree in a whole band of the signature are
compared; pairs whose estimate reaches the threshold are joined to clusters, and of a cluster the first document stays.

The minima are computed by datasketch. On the 10,033 documents of the default corpus (751,038 runs, already hashed) it took 0.38 s and
rensa 0.5, in Rust, 0.16 s, both less than finding the words. datasketch was chosen because its values are plain integer arithmetic in numpy
under a named scheme, the same on every machine, and it needs no compiled wheel.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

import numpy
from numpy.typing import NDArray

from prosemill.corpus.ngrams import Hashes, mix, ngram_hashes

if TYPE_CHECKING:
    from datasketch import MinHash

SHINGLE_WORDS = 5
NUM_PERMUTATIONS = 128
RECALL = 0.95  # chance that a pair exactly at the threshold is compared
NO_KEY = 0
"""Band key of a document without words: it is compared with none."""

MAX_HEADS = 8  # unlike documents of equal key that the others are compared with; the rest share too common a beginning, and stay
PAIRS_AT_ONCE = 1 << 15

Signature = NDArray[numpy.uint16]
Places = NDArray[numpy.int64]


class Store(Protocol):
    """Signatures and band keys of all documents, on disk."""

    def band(self, band: int) -> Hashes:
        """Every document's key of one band."""
        ...

    def signatures(self, documents: Places) -> Signature:
        """The signatures [documents, permutations] of some."""
        ...


def signature(text: bytes) -> Signature | None:
    """A text's signature; None for a text without words."""
    minima = _minima()
    minima.clear()
    for hashes in ngram_hashes(text, SHINGLE_WORDS):
        minima.update_batch(hashes.tolist())
    return None if minima.is_empty() else minima.hashvalues.astype(numpy.uint16)


def rows_of_band(threshold: float) -> int:
    """Rows of a band: as many as still compare a pair at the threshold with a chance of `RECALL`, so that fewer others are compared."""
    rows = range(NUM_PERMUTATIONS, 0, -1)
    return next((number for number in rows if 1 - (1 - threshold**number) ** (NUM_PERMUTATIONS // number) >= RECALL), 1)


def band_keys(signatures: Signature, num_rows: int) -> Hashes:
    """Keys [bands, documents]: documents whose rows of a band are equal have equal keys, never `NO_KEY`."""
    num_bands = signatures.shape[1] // num_rows
    keys = numpy.zeros((num_bands, len(signatures)), dtype=numpy.uint64)
    for row in range(num_rows):
        keys = mix(keys + signatures[:, row : num_bands * num_rows : num_rows].T + numpy.uint64(1))
    return numpy.maximum(keys, numpy.uint64(NO_KEY + 1))


def drop_near_duplicates(store: Store, order: Places, threshold: float) -> Places:
    """The documents to drop: of each cluster all but the one that comes first.

    Memory is some 40 bytes per document.

    Args:
        store: What the first pass wrote.
        order: The documents to look at, those to keep rather first.
        threshold: Jaccard similarity from which on two documents are near-duplicates.
    """
    roots = numpy.arange(len(order))  # of each document, by its place in the order: an earlier one of its cluster, or itself
    for band in range(NUM_PERMUTATIONS // rows_of_band(threshold)):
        for heads, members in _colliding(store.band(band)[order], roots):
            close = _are_close(store, order[heads], order[members], threshold)
            for head, member in zip(heads[close].tolist(), members[close].tolist(), strict=True):
                _join(roots, head, member)
            _flatten(roots)
    copies: Places = order[roots != numpy.arange(len(order))]
    return copies


def _colliding(keys: Hashes, roots: Places) -> Iterator[tuple[Places, Places]]:
    """Pairs to compare, in rounds: the first document of each key with all others; then, without it and those it was joined to, again."""
    by_key = numpy.argsort(keys, kind="stable")
    by_key = by_key[numpy.searchsorted(keys, NO_KEY, side="right", sorter=by_key) :]
    is_like_last = keys[by_key][1:] == keys[by_key][:-1]
    by_key = by_key[numpy.append(is_like_last, False)[: len(by_key)] | numpy.append(False, is_like_last)[: len(by_key)]]  # few, mostly
    for _ in range(MAX_HEADS):
        starts = numpy.append(True, keys[by_key][1:] != keys[by_key][:-1])[: len(by_key)]
        heads = by_key[numpy.flatnonzero(starts)[numpy.cumsum(starts) - 1]]
        by_key, heads = by_key[~starts], heads[~starts]
        is_apart = roots[by_key] != roots[heads]
        by_key, heads = by_key[is_apart], heads[is_apart]
        if not len(by_key):
            return
        yield heads, by_key
        by_key = by_key[roots[by_key] != roots[heads]]


def _are_close(store: Store, first: Places, second: Places, threshold: float) -> NDArray[numpy.bool_]:
    """Whether the estimated similarity of each pair reaches the threshold."""
    close = numpy.zeros(len(first), dtype=bool)
    for start in range(0, len(first), PAIRS_AT_ONCE):
        chunk = slice(start, start + PAIRS_AT_ONCE)
        close[chunk] = (store.signatures(first[chunk]) == store.signatures(second[chunk])).mean(axis=1) >= threshold
    return close


def _join(roots: Places, first: int, second: int) -> None:
    """Make two clusters one, under the earlier root (Tarjan 1975)."""
    while roots[first] != first:
        first = int(roots[first])
    while roots[second] != second:
        second = int(roots[second])
    roots[max(first, second)] = min(first, second)


def _flatten(roots: Places) -> None:
    """Let every document point to its cluster's first."""
    while not numpy.array_equal(higher := roots[roots], roots):
        roots[:] = higher


@lru_cache(maxsize=1)
def _minima() -> "MinHash":
    """One for all texts of a process: its permutations are drawn once."""
    from datasketch import MinHash

    return MinHash(num_perm=NUM_PERMUTATIONS, seed=1, scheme="affine64", hashfunc=int)
