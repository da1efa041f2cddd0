# SPDX-License-Identifier: Apache-2.0
"""N-grams of normalised words, as 64-bit hashes, many texts at a time.

A text is lowercased; letters and digits are kept, whitespace separates words,
everything else (punctuation, symbols) is deleted. This is the practice of GPT-3
(Brown et al. 2020, arXiv 2005.14165, appendix C: "ignoring punctuation,
whitespace, and casing") and of EleutherAI's evaluation harness for The Pile
(lm_eval/decontamination/janitor.py, 13 words).

Words and n-grams are hashed with polynomials modulo 2**64, scrambled by
SplitMix64's finalizer, with NumPy alone. Of 10^11 n-grams of a corpus and 10^6
of evaluation sets fewer than 0.01 pairs are expected to agree by chance.
"""

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bt_megatron.data.hash64 import mix64

_SPACE = 0x20
_WHITESPACE = "".join(chr(code) for code in range(128) if chr(code).isspace())
_TO_SPACE = bytes.maketrans(_WHITESPACE.encode(), b" " * len(_WHITESPACE))
_DELETED = bytes(
    code
    for code in range(128)
    if chr(code) not in string.ascii_letters + string.digits + _WHITESPACE
)
_NOT_A_WORD = re.compile(r"[^\w\s]|_")
_WIDE_SPACE = re.compile(r"\s+")

_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it has an inverse modulo 2**64
_INVERSE = np.uint64(pow(int(_BASE), -1, 2**64))
_NGRAM_BASE = np.uint64(0xD6E8FEB86659FD93)


@dataclass(frozen=True, slots=True)
class Words:
    """The words of several texts."""

    hashes: NDArray[np.uint64]
    """[words] hash of each."""
    texts: NDArray[np.int64]
    """[words] index of the text that each is of."""


def normalise(text: str) -> bytes:
    """Return the words of a text in UTF-8, with spaces between them."""
    lowered = text.lower()
    if not lowered.isascii():
        lowered = _WIDE_SPACE.sub(" ", _NOT_A_WORD.sub("", lowered))
    return lowered.encode("utf-8", "surrogatepass").translate(_TO_SPACE, _DELETED)


def split_words(texts: Sequence[str]) -> Words:
    """Hash the words of several texts."""
    pieces = [normalise(text) for text in texts]
    lengths = np.array([len(piece) + 1 for piece in pieces], dtype=np.int64)
    data = np.frombuffer(b" ".join(pieces), dtype=np.uint8)
    is_word = np.zeros(len(data) + 2, dtype=np.bool_)
    is_word[1:-1] = data != _SPACE
    starts = np.flatnonzero(is_word[1:] & ~is_word[:-1])  # [words]
    ends = np.flatnonzero(is_word[:-1] & ~is_word[1:])
    texts_of = np.searchsorted(np.cumsum(lengths), starts, side="right")
    return Words(_hash_words(data, starts, ends), texts_of)


def hash_ngrams(words: Words, *, size: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Hash every run of `size` words of one text.

    Returns:
        [n-grams] hashes, and [n-grams] the index of the text that each is of.
    """
    count = len(words.hashes) - size + 1
    if count <= 0:
        return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64)
    hashes = np.zeros(count, dtype=np.uint64)
    for i in range(size):
        hashes *= _NGRAM_BASE
        hashes += words.hashes[i : i + count]
    inside = words.texts[:count] == words.texts[size - 1 :]
    return mix64(hashes[inside]), words.texts[:count][inside]


def _hash_words(
    data: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> NDArray[np.uint64]:
    """Hash each word [start, end): the sum of (byte + 1) * base**place, a difference of sums."""
    powers, inverses = _powers(len(data))
    sums = np.zeros(len(data) + 1, dtype=np.uint64)
    np.cumsum((data + np.uint64(1)) * powers, out=sums[1:])
    return mix64((sums[ends] - sums[starts]) * inverses[starts])


def _powers(size: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return [>= size] powers of the base and of its inverse, kept for the next call."""
    if len(_TABLES[0]) < size:
        grown = max(size, 1 << 20)
        for place, base in enumerate((_BASE, _INVERSE)):
            factors = np.full(grown, base, dtype=np.uint64)
            factors[0] = 1
            _TABLES[place] = np.cumprod(factors, dtype=np.uint64)
    return _TABLES[0][:size], _TABLES[1][:size]


_TABLES: list[NDArray[np.uint64]] = [np.ones(0, np.uint64), np.ones(0, np.uint64)]
