# SPDX-License-Identifier: Apache-2.0
"""Is the fast engine equal to `tokenizers`? Asked before a run, and on a sample all through it.

Before: texts made to be difficult, with every added token among them. During: the first document
of each shard and then one in each 16 MB of text, of which up to 8,000 characters are encoded by
both; about one percent of the time goes there.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from data_prep.engines import Encoded, Engine, ReferenceEngine

EVERY_CHARACTERS = 16_000_000
_LONGEST = 8_000
_EXCERPT = 40

# Composition, order of marks, digits and letters outside of ASCII, contractions after each of
# them, line separators, runs of whitespace, characters without an assignment.
_DIFFICULT = (
    "Hello world, it's we'll I'd they've don't 'S 'LL ''s",
    "e\u0301 \u00e9 \ufb01 \u212b \u1e9b\u0323 a\u0323\u0302 a\u0302\u0323 \u1100\u1161\u11a8",
    "1234 \u0661\u0662\u0663 \u2167 \u00bd x\u00b2 \U0001d7d8's",
    "\u6f22\u5b57 \U00020000's \U00030000's \U0003134f's \U000323b0's \U00033092's \u0378's",
    " \t\n\r\x0b\x0c\x1c\x85\xa0\u1680\u2028\u2029\u200b\u202f\u3000\ufeff mixed\n\n\n  lines \n",
    "".join(map(chr, range(1, 0x250))),
    "\U0001f9ea\U0001f468\u200d\U0001f469\u200d\U0001f467\u20e3 \U00011f42\u0345 \U0010ffff",
    "def f(x):\n\treturn {'a': [1.5e-3, None]}  # done\r\n\r\n",
    "aaaa" * 200 + "=" * 100 + "\n" * 50 + " " * 100 + "x",
)


class EngineDiffersError(Exception):
    """The fast engine gave other ids than `tokenizers`.

    Args:
        engine: its name and version.
        what: where, and what both gave.
    """

    def __init__(self, engine: str, what: str) -> None:
        super().__init__(engine, what)  # both, so that it can be pickled
        self.engine = engine
        self.what = what


def check_before(engine: Engine, reference: Tokenizer) -> None:
    """Compare an engine with `tokenizers` on difficult texts.

    Raises:
        EngineDiffersError: it gives other ids, or fails where `tokenizers` does not.
    """
    added = [token.content for token in reference.get_added_tokens_decoder().values()]
    texts = [*_DIFFICULT, *(f"a{content}b {content} {content}" for content in added[:200])]
    expected = ReferenceEngine(reference).encode(texts)
    try:
        found = engine.encode(texts)
    except Exception as error:  # whatever it is, the reference had no trouble
        raise EngineDiffersError(engine.name, f"fails on a difficult text: {error}") from error
    for i, text in enumerate(texts):
        _compare(engine, text, found.row(i), expected.row(i), where=f"difficult text {i}")


@dataclass(slots=True)
class ParityCheck:
    """Compares the ids of one shard with `tokenizers` now and then."""

    engine: Engine
    reference: Tokenizer
    documents: int = 0
    """Compared so far."""
    _until_next: int = 0
    """Characters."""

    def look(self, texts: list[str], encoded: Encoded, lines: list[int]) -> None:
        """Compare one text of a batch, if it is time to.

        Args:
            texts: a batch.
            encoded: what the engine made of it.
            lines: the line of the input of each text.

        Raises:
            EngineDiffersError: the ids differ.
        """
        self._until_next -= sum(map(len, texts))
        if self._until_next > 0 or not texts:
            return
        self._until_next = EVERY_CHARACTERS
        i = self.documents * 7919 % len(texts)  # not always the first of a batch
        text, found = texts[i], encoded.row(i)
        if len(text) > _LONGEST:
            start = self.documents * 104_729 % (len(text) - _LONGEST)
            text = text[start : start + _LONGEST]
            found = self.engine.encode([text]).ids
        expected = ReferenceEngine(self.reference).encode([text]).ids
        _compare(self.engine, text, found, expected, where=f"line {lines[i]}")
        self.documents += 1


def _compare(
    engine: Engine,
    text: str,
    found: NDArray[np.uint32],
    expected: NDArray[np.uint32],
    *,
    where: str,
) -> None:
    if np.array_equal(found, expected):
        return
    shorter = min(len(found), len(expected))
    differs = np.flatnonzero(found[:shorter] != expected[:shorter])
    at = int(differs[0]) if differs.size else shorter
    raise EngineDiffersError(
        engine.name,
        f"{where} ({ascii(text[:_EXCERPT])}...): id {at} is "
        f"{found[at] if at < len(found) else 'absent'}, tokenizers gives "
        f"{expected[at] if at < len(expected) else 'none'}",
    )
