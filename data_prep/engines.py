# SPDX-License-Identifier: Apache-2.0
"""What turns texts into ids: Hugging Face `tokenizers`, and a faster engine of the same ids.

`tokenizers` is the definition of the right ids. fastokens reads the same tokenizer.json and is
about forty times as fast; it is used where it is installed, takes the file and gives the same ids
(`parity.py`). gigatoken is faster still and not used: where a character is younger than the
Unicode tables of `tokenizers`, its ids differ (docs/performance-log.md).
"""

import importlib.metadata
import importlib.util
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

REFERENCE = "tokenizers"
FAST = "fastokens"


class Encoded(NamedTuple):
    """The ids of some texts, back to back."""

    ids: NDArray[np.uint32]
    """[sum of lengths]"""
    lengths: NDArray[np.int64]
    """[texts] ids of each."""

    def row(self, i: int) -> NDArray[np.uint32]:
        """Return the ids of text i."""
        end = int(self.lengths[: i + 1].sum())
        return self.ids[end - int(self.lengths[i]) : end]


class Engine(Protocol):
    """Something that makes ids."""

    @property
    def name(self) -> str:
        """Package and version, as they are recorded with a shard."""

    def encode(self, texts: list[str]) -> Encoded:
        """Encode texts without adding any token; raises whatever the package raises."""


class ReferenceEngine:
    """Hugging Face `tokenizers`.

    Args:
        tokenizer: without truncation and padding.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.name = _name(REFERENCE)
        self._tokenizer = tokenizer

    def encode(self, texts: list[str]) -> Encoded:
        """Encode a batch on the threads of `tokenizers`."""
        rows = [
            np.array(encoding.ids, dtype=np.uint32)
            for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        ]
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        return Encoded(np.concatenate(rows or [np.zeros(0, np.uint32)]), lengths)


class FastEngine:
    """fastokens, whose caches are bounded (about 250 MB).

    Args:
        content: of a tokenizer.json.

    Raises:
        Exception: fastokens is not installed or does not take the file.
    """

    def __init__(self, content: bytes) -> None:
        # Late: the package need not be there. Its own __init__ adds only what patches transformers.
        from fastokens._native import Tokenizer as FastTokenizer

        self.name = _name(FAST)
        self._tokenizer = FastTokenizer.from_json_str(content.decode("utf-8"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, texts: list[str]) -> Encoded:
        """Encode a batch on RAYON_NUM_THREADS threads, with the interpreter lock released."""
        ids, offsets = self._tokenizer.encode_batch_flat(texts)
        return Encoded(np.frombuffer(ids, "<u4"), np.diff(np.frombuffer(offsets, "<i8")))


def has_fast_engine() -> bool:
    """Say whether the package of the fast engine is installed."""
    return importlib.util.find_spec(FAST) is not None


def _name(package: str) -> str:
    return f"{package} {importlib.metadata.version(package)}"
