# SPDX-License-Identifier: Apache-2.0
"""Evaluation sets as sets of n-grams: what a corpus is searched for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from bt_megatron.errors import DataError
from data_prep.ngrams import hash_ngrams, split_words

SHORTEST, LONGEST = 8, 13
"""Words of an n-gram by GPT-3's rule (arXiv 2005.14165, appendix C)."""


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """The n-grams of one set, by example."""

    name: str
    size: int
    """Words of an n-gram."""
    num_examples: int
    ngrams: NDArray[np.uint64]
    """[n-grams] hashes, example after example."""
    examples: NDArray[np.int64]
    """[n-grams] the example that each is of, ascending."""

    @property
    def num_long_enough(self) -> int:
        """Examples with at least one n-gram."""
        return len(np.unique(self.examples))


def read_evaluation_set(
    path: Path, *, name: str, size: int | None, fields: Sequence[str] = ()
) -> EvaluationSet:
    """Read a set from JSON lines.

    Args:
        path: one example a line.
        name: for the report.
        size: words of an n-gram; none: GPT-3's rule, the length that 5 % of the examples
            fall short of, from 8 to 13.
        fields: keys whose texts make an example; none: every text of the line.

    Returns:
        The set. The texts of an example are taken one after the other.

    Raises:
        DataError: the file cannot be read, a line is no object, or holds no text.
    """
    texts = [_text_of(where, body, fields) for where, body in _read_objects(path)]
    if not texts:
        raise DataError(f"{path} - holds no example - check the path")
    words = split_words(texts)
    if size is None:
        counts = np.bincount(words.texts, minlength=len(texts))
        size = int(np.clip(np.percentile(counts, 5), SHORTEST, LONGEST))
    ngrams, examples = hash_ngrams(words, size=size)
    return EvaluationSet(name, size, len(texts), ngrams, examples)


def _read_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    remedy = "give JSON lines, one example a line"
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"{path} - cannot be read: {error.strerror} - check the path") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            body = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise DataError(f"{where} - is not JSON: {error} - {remedy}") from error
        if not isinstance(body, dict):
            raise DataError(f"{where} - is a {type(body).__name__}, no object - {remedy}")
        yield where, body


def _text_of(where: str, body: dict[str, Any], fields: Sequence[str]) -> str:
    missing = [field for field in fields if field not in body]
    if missing:
        raise DataError(
            f"{where} - has no {', '.join(missing)} among {', '.join(sorted(body))} - change "
            "--fields"
        )
    parts = list(_strings([body[field] for field in fields] if fields else body))
    if not parts:
        raise DataError(f"{where} - holds no text - name the keys that do with --fields")
    return "\n".join(parts)


def _strings(value: Any) -> Iterator[str]:
    """Yield every text inside a JSON value, in its order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
