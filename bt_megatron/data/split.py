# SPDX-License-Identifier: Apache-2.0
"""Which documents are for training and which for validation.

The split is by document, so that no document is on both sides, and a pure
function of (seed, document index): document i is held out when output i of
SplitMix64(seed), as a fraction of 2**64, is below the validation fraction.
Documents appended to a corpus do not move the others.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bt_megatron.data.hash64 import random64
from bt_megatron.errors import DataError

Split = Literal["train", "validation"]

_CHUNK = 1 << 22  # documents hashed at once: 32 MiB per temporary array


def documents_of_split(
    num_documents: int, *, split: Split, fraction: float, seed: int
) -> NDArray[np.int64]:
    """List the documents of one side of the split.

    Neither side is ever empty when fraction > 0: where chance leaves a side
    without a document, it gets the one whose hash is nearest to it.

    Args:
        num_documents: documents of the whole corpus.
        split: which side.
        fraction: part of the documents held out; 0 gives all of them to training.
        seed: seed of the split.

    Returns:
        Document indices, ascending.

    Raises:
        DataError: a corpus of fewer than two documents cannot be split.
    """
    if fraction <= 0:
        return np.arange(num_documents if split == "train" else 0)
    if num_documents < 2:
        raise DataError(
            f"data.validation_fraction - {fraction} of the documents should be held out, but "
            f"documents in the corpus: {num_documents}, at least 2 are needed - add documents, or "
            "set data.validation_fraction to 0"
        )
    held_out = _is_held_out(num_documents, fraction=fraction, seed=seed)
    return np.flatnonzero(held_out if split == "validation" else ~held_out)


def _is_held_out(num_documents: int, *, fraction: float, seed: int) -> NDArray[np.bool_]:
    threshold = np.uint64(min(int(fraction * 2**64), 2**64 - 1))
    held_out = np.empty(num_documents, dtype=np.bool_)
    for start in range(0, num_documents, _CHUNK):
        stop = min(start + _CHUNK, num_documents)
        held_out[start:stop] = _hashes(start, stop, seed=seed) < threshold
    if not held_out.any():
        held_out[np.argmin(_hashes(0, num_documents, seed=seed))] = True
    elif held_out.all():
        held_out[np.argmax(_hashes(0, num_documents, seed=seed))] = False
    return held_out


def _hashes(start: int, stop: int, *, seed: int) -> NDArray[np.uint64]:
    return random64(np.arange(start, stop, dtype=np.uint64), seed=seed)
