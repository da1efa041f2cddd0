# SPDX-License-Identifier: Apache-2.0
"""Which documents repeat an earlier one, from their hashes or signatures."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from bt_megatron.data.hash64 import mix64
from data_prep.signatures import NUM_PERMUTATIONS

_MAX_LEADERS = 64
"""Documents of a bucket that the others of it are compared with."""
_WEIGHTS = (0.1, 0.9)
"""Of pairs compared in vain and pairs missed, in the choice of the bands: comparing is cheap. At
0.8 they are 14 bands of 9: 87 % of the pairs at 0.8 are compared, 97 % at 0.85."""
_ROWS_AT_ONCE = 1 << 20


def repeated(hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Mark all but the first of equal rows.

    Args:
        hashes: [documents, 2].

    Returns:
        [documents].
    """
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))  # stable: equal rows keep their order
    ordered = hashes[order]
    marks = np.zeros(len(hashes), dtype=np.bool_)
    marks[order[1:]] = (ordered[1:] == ordered[:-1]).all(axis=1)
    return marks


class SignatureTable:
    """Signatures of all documents, in parts that are mapped from disk."""

    def __init__(self, parts: Sequence[NDArray[np.uint32]]) -> None:
        """Line the parts up: [any, 128] each."""
        self._parts = list(parts)
        self._firsts = np.cumsum([0, *(len(part) for part in self._parts)])

    def __len__(self) -> int:
        """Return the number of documents."""
        return int(self._firsts[-1])

    def row(self, index: int) -> NDArray[np.uint32]:
        """Return the signature of a document, [128]."""
        part = int(np.searchsorted(self._firsts, index, side="right")) - 1
        row: NDArray[np.uint32] = self._parts[part][index - self._firsts[part]]
        return row

    def band_keys(self, first: int, last: int) -> NDArray[np.uint64]:
        """Hash columns [first, last) of all signatures: [documents]."""
        keys = np.empty(len(self), dtype=np.uint64)
        for part, begin in zip(self._parts, self._firsts[:-1], strict=True):
            for start in range(0, len(part), _ROWS_AT_ONCE):
                columns = part[start : start + _ROWS_AT_ONCE, first:last].astype(np.uint64)
                hashed = np.zeros(len(columns), dtype=np.uint64)
                for column in columns.T:
                    hashed = mix64(hashed ^ column)
                keys[begin + start : begin + start + len(columns)] = hashed
        return keys


def near_repeated(
    table: SignatureTable,
    *,
    threshold: float,
    is_out: NDArray[np.bool_],
    on_band: Callable[[int, int], None],
) -> NDArray[np.bool_]:
    """Mark all but the first document of each group of near duplicates.

    Signatures are cut into bands (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets,
    chapter 3.4); documents that agree in a whole band are compared, and belong together if
    their signatures agree in `threshold` of all places. Groups are what such pairs connect.

    Args:
        table: of all documents.
        threshold: Jaccard similarity, as the signatures estimate it.
        is_out: [documents] those that are left out already.
        on_band: called with the number of each band from 1, and of all bands.

    Returns:
        [documents].
    """
    from datasketch import MinHashLSH  # late, as in signatures.py

    lsh = MinHashLSH(threshold=threshold, num_perm=NUM_PERMUTATIONS, weights=_WEIGHTS)
    groups = _Groups(len(table))
    for band in range(lsh.b):
        on_band(band + 1, lsh.b)
        keys = table.band_keys(band * lsh.r, (band + 1) * lsh.r)
        for bucket in _buckets(keys, is_out):
            _join_bucket(bucket, table, groups, threshold)
    return groups.marks()


def _buckets(keys: NDArray[np.uint64], is_out: NDArray[np.bool_]) -> Iterator[NDArray[np.int64]]:
    """Yield the documents of each key that two or more have, ascending."""
    kept = np.flatnonzero(~is_out)
    order = kept[np.argsort(keys[kept], kind="stable")]
    ordered = keys[order]
    edges = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)) + 1
    starts = np.concatenate(([0], edges[:-1])) if len(edges) else edges
    for start, stop in zip(starts.tolist(), edges.tolist(), strict=True):
        if stop - start > 1:
            yield order[start:stop]


def _join_bucket(
    bucket: NDArray[np.int64], table: SignatureTable, groups: "_Groups", threshold: float
) -> None:
    leaders: list[int] = []
    for document in bucket.tolist():
        signature = table.row(document)
        for leader in leaders:
            if groups.root(leader) == groups.root(document):
                break
            if (table.row(leader) == signature).mean() >= threshold:
                groups.join(leader, document)
                break
        else:
            if len(leaders) < _MAX_LEADERS:
                leaders.append(document)


class _Groups:
    """Union-find whose roots are the first documents of their groups."""

    def __init__(self, size: int) -> None:
        self._parents = np.arange(size, dtype=np.int64)

    def root(self, index: int) -> int:
        parents = self._parents
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = int(parents[index])
        return index

    def join(self, one: int, other: int) -> None:
        first, second = sorted((self.root(one), self.root(other)))
        self._parents[second] = first

    def marks(self) -> NDArray[np.bool_]:
        marks: NDArray[np.bool_] = self._parents != np.arange(len(self._parents))
        return marks
