# SPDX-License-Identifier: Apache-2.0
"""What two documents are compared by: a hash of their ids, and MinHash signatures.

MinHash (Broder 1997) is datasketch's: the set of a document is its runs of
`SHINGLE_TOKENS` ids; the part of a signature in which two documents agree
estimates the Jaccard similarity of their sets, with a standard error of
sqrt(J (1 - J) / 128), 0.035 at 0.8.
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bt_megatron.data.corpus import TokenCorpus
from bt_megatron.data.hash64 import mix64

NUM_PERMUTATIONS = 128
SHINGLE_TOKENS = 5

_SEED = 1
_SHINGLES_AT_ONCE = 1 << 12
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)

OnBytes = Callable[[int], None]


class Documents:
    """The documents of a corpus, to be read in runs."""

    def __init__(self, corpus: TokenCorpus) -> None:
        """Read where they are."""
        self.corpus = corpus
        self._starts, self._lengths = corpus.starts(), corpus.lengths

    def read(self, first: int, last: int) -> Iterator[NDArray[Any]]:
        """Yield the ids of documents [first, last)."""
        for i in range(first, last):
            start = int(self._starts[i])
            yield self.corpus.tokens.read(start, start + int(self._lengths[i]))


def exact_hashes(
    documents: Documents, first: int, last: int, *, on_bytes: OnBytes
) -> NDArray[np.uint64]:
    """Hash the ids of documents.

    Args:
        documents: of a corpus.
        first: the first document.
        last: the last one, plus one.
        on_bytes: called with the bytes of ids hashed since the last call.

    Returns:
        [last - first, 2] uint64: 128 bits each. Documents of equal ids have equal hashes,
        whatever the type of the ids in their shard.
    """
    hashes = np.empty((last - first, 2), dtype=np.uint64)
    for row, ids in zip(hashes, documents.read(first, last), strict=True):
        wide = np.ascontiguousarray(ids, dtype="<i4")
        row[:] = np.frombuffer(hashlib.blake2b(wide, digest_size=16).digest(), dtype="<u8")
        on_bytes(ids.nbytes)
    return hashes


def signatures(
    documents: Documents, first: int, last: int, *, on_bytes: OnBytes
) -> NDArray[np.uint32]:
    """Compute the MinHash signatures of documents; arguments as `exact_hashes`.

    Returns:
        [last - first, 128] uint32.
    """
    from datasketch import MinHash  # late: it takes a while, and most commands do without

    table = np.empty((last - first, NUM_PERMUTATIONS), dtype=np.uint32)
    empty = MinHash(num_perm=NUM_PERMUTATIONS, seed=_SEED, hashfunc=int)
    for row, ids in zip(table, documents.read(first, last), strict=True):
        minhash = empty.copy()
        shingles = shingle_hashes(ids)
        for start in range(0, len(shingles), _SHINGLES_AT_ONCE):
            minhash.update_batch(shingles[start : start + _SHINGLES_AT_ONCE].tolist())
        row[:] = minhash.digest()
        on_bytes(ids.nbytes)
    return table


def shingle_hashes(ids: NDArray[Any]) -> NDArray[np.uint64]:
    """Hash every run of `SHINGLE_TOKENS` ids to 32 bits; a shorter document is one run.

    Args:
        ids: [tokens].

    Returns:
        Different hashes, ascending, as uint64 below 2**32; none for no ids.
    """
    wide = ids.astype(np.uint64) + np.uint64(1)
    size = min(SHINGLE_TOKENS, len(wide))
    count = len(wide) - size + 1 if size else 0
    hashes = np.zeros(count, dtype=np.uint64)
    for i in range(size):
        hashes = hashes * _MULTIPLIER + wide[i : i + count]
    return np.unique(mix64(hashes) >> np.uint64(32))
