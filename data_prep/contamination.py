# SPDX-License-Identifier: Apache-2.0
"""Which examples of evaluation sets share n-grams of words with a corpus.

The evaluation sets are held in memory, the corpus streams by; for each n-gram
of an evaluation set the documents that hold it are counted. The practice is
that of GPT-3 (arXiv 2005.14165, appendix C: an example with any 13-gram of the
training data counts as dirty) and of the evaluation harness of The Pile. What
each input came to is kept in the folder of the report, so the command goes on
after the last input that it finished.
"""

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from bt_megatron.errors import DataError
from data_prep.evaluation_sets import EvaluationSet
from data_prep.ngrams import hash_ngrams, split_words

REPORT_NAME = "contamination.json"

_CHARACTERS_AT_ONCE = 1 << 20
_FILTER_BITS = 24


@dataclass(frozen=True, kw_only=True, slots=True)
class SetReport:
    """What was found of one evaluation set."""

    name: str
    ngram_words: int
    examples: int
    too_short: int
    """Examples without a single n-gram: nothing can be said of them."""
    dirty: int
    """Examples with at least one n-gram of the corpus."""
    mostly_dirty: int
    """Examples with at least half of their n-grams in the corpus."""
    ngrams: int
    """Different n-grams of the set."""
    ngrams_found: int
    """Those that the corpus holds."""
    dirty_examples: dict[str, float]
    """Share of n-grams found, by number of the example, counted from 0."""


class NgramCounter:
    """Counts in how many documents each n-gram of the evaluation sets stands."""

    def __init__(self, sets: Sequence[EvaluationSet]) -> None:
        """Collect the different n-grams of all sets, by their number of words."""
        sizes = sorted({s.size for s in sets})
        self.known = {
            size: np.unique(np.concatenate([s.ngrams for s in sets if s.size == size]))
            for size in sizes
        }
        self._filters = {size: _filter(known) for size, known in self.known.items()}

    def empty(self) -> dict[int, NDArray[np.int64]]:
        """Return counts of zero, [n-grams] by number of words."""
        return {size: np.zeros(len(known), dtype=np.int64) for size, known in self.known.items()}

    def add(self, texts: Sequence[str], counts: dict[int, NDArray[np.int64]]) -> None:
        """Count the n-grams of some documents, each once a document."""
        words = split_words(texts)
        for size, known in self.known.items():
            hashes, documents = hash_ngrams(words, size=size)
            likely = np.flatnonzero(self._filters[size][_low_bits(hashes)])
            hashes, documents = hashes[likely], documents[likely]
            places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
            found = known[places] == hashes if len(known) else np.zeros(0, dtype=np.bool_)
            pairs = np.unique(np.stack((documents[found], places[found])), axis=1)
            np.add.at(counts[size], pairs[1], 1)


@dataclass(frozen=True, slots=True)
class CorpusInput:
    """One input of the corpus: a name, what it is, and its documents."""

    name: str
    stamp: str
    """Changes when the input does."""
    size: int
    """Bytes, for progress."""
    read: Callable[[Callable[[int], None]], Iterator[str]]
    """Yields the texts; calls its argument with the bytes read so far."""


def count_corpus(
    inputs: Sequence[CorpusInput],
    sets: Sequence[EvaluationSet],
    *,
    folder: Path,
    on_bytes: Callable[[int], None],
) -> tuple[NgramCounter, dict[int, NDArray[np.int64]], int]:
    """Count the n-grams of evaluation sets in all inputs.

    Args:
        inputs: the corpus.
        sets: what to look for.
        folder: where counts of finished inputs are kept; made if need be.
        on_bytes: called with the bytes done so far, of all inputs.

    Returns:
        The n-grams, in how many documents each stands, and the number of documents.

    Raises:
        DataError: an input cannot be read.
    """
    counter = NgramCounter(sets)
    asked = _digest(counter)
    totals, documents, done = counter.empty(), 0, 0
    folder.mkdir(parents=True, exist_ok=True)
    for item in inputs:
        path = folder / f"{item.name}.counts.npz"
        key = f"{asked} {item.stamp}"
        kept = _load(path, key, counter)
        if kept is None:
            kept = _count_input(item, counter, functools.partial(_from, done, on_bytes))
            _save(path, key, *kept)
        counts, number = kept
        documents += number
        done += item.size
        on_bytes(done)
        for size, values in counts.items():
            totals[size] += values
    return counter, totals, documents


def report_set(
    evaluation: EvaluationSet,
    counter: NgramCounter,
    counts: dict[int, NDArray[np.int64]],
    *,
    max_documents: int | None = None,
) -> SetReport:
    """Sum up what was found of one set.

    Args:
        evaluation: the set.
        counter: its n-grams among those of all sets.
        counts: documents that hold each.
        max_documents: an n-gram of more documents is common language and does not count (GPT-3
            and The Pile's harness: 10); none: all count.
    """
    known = counter.known[evaluation.size]
    held = counts[evaluation.size]
    is_found = held > 0
    if max_documents is not None:
        is_found &= held <= max_documents
    found = is_found[np.searchsorted(known, evaluation.ngrams)]
    all_of = np.bincount(evaluation.examples, minlength=evaluation.num_examples)
    found_of = np.bincount(evaluation.examples[found], minlength=evaluation.num_examples)
    dirty = np.flatnonzero(found_of)
    shares = found_of[dirty] / all_of[dirty]
    return SetReport(
        name=evaluation.name,
        ngram_words=evaluation.size,
        examples=evaluation.num_examples,
        too_short=evaluation.num_examples - evaluation.num_long_enough,
        dirty=len(dirty),
        mostly_dirty=int((shares >= 0.5).sum()),
        ngrams=len(np.unique(evaluation.ngrams)),
        ngrams_found=len(np.unique(evaluation.ngrams[found])),
        dirty_examples={str(i): round(float(s), 4) for i, s in zip(dirty, shares, strict=True)},
    )


def contamination_table(reports: Sequence[SetReport], *, documents: int) -> Table:
    """Lay out what was found, one evaluation set a line."""
    table = Table(title=f"n-grams of evaluation sets in {documents:,} documents")
    table.add_column("set", min_width=10, overflow="fold")
    for column in ("words", "examples", "too short", "dirty", "half or more", "n-grams found"):
        table.add_column(column, justify="right", no_wrap=True)
    for report in reports:
        judged = report.examples - report.too_short
        share = f" ({report.dirty / judged:.1%})" if judged else ""
        table.add_row(
            report.name,
            str(report.ngram_words),
            f"{report.examples:,}",
            f"{report.too_short:,}",
            f"{report.dirty:,}{share}",
            f"{report.mostly_dirty:,}",
            f"{report.ngrams_found:,} of {report.ngrams:,}",
        )
    return table


def _from(done: int, on_bytes: Callable[[int], None], size: int) -> None:
    on_bytes(done + size)


def _count_input(
    item: CorpusInput, counter: NgramCounter, on_bytes: Callable[[int], None]
) -> tuple[dict[int, NDArray[np.int64]], int]:
    counts, documents = counter.empty(), 0
    batch: list[str] = []
    characters = 0
    for text in item.read(on_bytes):
        batch.append(text)
        characters += len(text)
        documents += 1
        if characters >= _CHARACTERS_AT_ONCE:
            counter.add(batch, counts)
            batch, characters = [], 0
    if batch:
        counter.add(batch, counts)
    return counts, documents


def _filter(known: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Mark the low bits of all hashes: a look-up that spares most searches."""
    table = np.zeros(1 << _FILTER_BITS, dtype=np.bool_)
    table[_low_bits(known)] = True
    return table


def _low_bits(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return hashes & np.uint64((1 << _FILTER_BITS) - 1)


def _digest(counter: NgramCounter) -> str:
    digest = hashlib.sha256(b"ngram counts 1")
    for size, known in counter.known.items():
        digest.update(f" {size} {len(known)} ".encode())
        digest.update(known.tobytes())
    return digest.hexdigest()


def _save(path: Path, key: str, counts: dict[int, NDArray[np.int64]], documents: int) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as stream:
        arrays: dict[str, Any] = {f"words_{size}": values for size, values in counts.items()}
        np.savez_compressed(stream, key=np.array(key), documents=np.array(documents), **arrays)
    temporary.replace(path)


def _load(
    path: Path, key: str, counter: NgramCounter
) -> tuple[dict[int, NDArray[np.int64]], int] | None:
    """Return the counts of a finished input; None if there are none of this question."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as body:
            if str(body["key"]) != key:
                return None
            counts = {size: body[f"words_{size}"] for size in counter.known}
            return counts, int(body["documents"])
    except (OSError, EOFError, ValueError, KeyError, BadZipFile) as error:
        raise DataError(f"{path} - cannot be read: {error} - remove it") from error
