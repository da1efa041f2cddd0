# SPDX-License-Identifier: Apache-2.0
"""Documents of a corpus that no run reads: duplicates, or what an evaluation set holds too.

`python -m data_prep deduplicate` writes such a list; `data.drop` names it. The
token shards stay as they are. A list is of one corpus, whose fingerprint it
carries. An .npz file of NumPy.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from bt_megatron.errors import DataError

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class DropList:
    """Which documents to leave out."""

    documents: NDArray[np.int64]
    """[any] indices in the corpus, ascending."""
    corpus_fingerprint: str
    """Of the corpus that they are indices of."""

    @property
    def fingerprint(self) -> str:
        """Hex digest of the indices."""
        return hashlib.sha256(self.documents.astype("<i8").tobytes()).hexdigest()


def save_drop_list(drop: DropList, path: Path) -> None:
    """Write a list so that it is there whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as stream:
        np.savez_compressed(
            stream,
            format=np.array(_FORMAT),
            documents=drop.documents.astype("<i8"),
            corpus=np.array(drop.corpus_fingerprint),
        )
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def load_drop_list(path: Path, *, corpus_fingerprint: str) -> DropList:
    """Read a list of a corpus.

    Raises:
        DataError: it cannot be read, or is of another corpus.
    """
    remedy = "make it again with `python -m data_prep deduplicate`"
    try:
        with np.load(path, allow_pickle=False) as body:
            found, documents, corpus = (body[k] for k in ("format", "documents", "corpus"))
    except (OSError, EOFError, ValueError, KeyError, TypeError, BadZipFile) as error:
        raise DataError(
            f"{path} - cannot be read as a list of documents: {error} - {remedy}"
        ) from error
    if int(found) != _FORMAT:
        raise DataError(f"{path} - has format {int(found)}, expected {_FORMAT} - {remedy}")
    if str(corpus) != corpus_fingerprint:
        raise DataError(
            f"{path} - is of the corpus {str(corpus)[:12]}, the data is {corpus_fingerprint[:12]} "
            f"- {remedy} of this data"
        )
    return DropList(documents.astype(np.int64), corpus_fingerprint)
