# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face `tokenizer.json`, as the tokenize command uses it.

Everything that makes ids goes through `TextTokenizer`: it holds the engine that is used and
`tokenizers`, which says what is right.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from bt_megatron.data.manifest import TokenizerRecord
from bt_megatron.errors import DataError
from data_prep.cuts import can_cut
from data_prep.engines import (
    FAST,
    REFERENCE,
    Encoded,
    Engine,
    FastEngine,
    ReferenceEngine,
    has_fast_engine,
)
from data_prep.parity import EngineDiffersError, ParityCheck, check_before

FILE_NAME = "tokenizer.json"
DEFAULT_EOS = "<|endoftext|>"
AUTOMATIC = "auto"
ENGINES = (AUTOMATIC, FAST, REFERENCE)

_REMEDY = "give a tokenizer.json, or make one with `python -m data_prep train-tokenizer`"


class Batch(NamedTuple):
    """The ids of a batch of texts."""

    encoded: Encoded
    """Of all texts; a text that cannot be encoded has no ids."""
    complaints: dict[int, str]
    """By index of the text: why it cannot be encoded."""


class TextTokenizer:
    """Turns texts into ids without adding any token.

    Truncation and padding that the file may ask for are turned off: they would
    cut documents or put pads into them.

    Args:
        path: a tokenizer.json.
        eos_token: the token that ends a document.
        engine: one of `ENGINES`; automatic is the fast one where it can be used.
        warn: is told why it cannot.

    Raises:
        DataError: the file cannot be read, the EOS token is not in it, or the
            engine that was asked for cannot be used.
    """

    def __init__(
        self,
        path: Path,
        *,
        eos_token: str = DEFAULT_EOS,
        engine: str = AUTOMATIC,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        self.path = path
        self.content, self._tokenizer = read_tokenizer(path)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.record = TokenizerRecord(
            file=FILE_NAME,
            sha256=hashlib.sha256(self.content).hexdigest(),
            vocab_size=vocabulary_size(self._tokenizer),
            eos_id=self._eos_id(eos_token),
        )
        self.can_cut = can_cut(self.content)
        self.engine = self._choose(engine, warn or (lambda text: None))

    def encode(self, texts: list[str]) -> Batch:
        """Encode a batch; where the engine fails, `tokenizers` has the last word on each text.

        Raises:
            EngineDiffersError: the fast engine fails, and `tokenizers` does not.
        """
        try:
            return Batch(self.engine.encode(texts), {})
        except Exception as error:  # the engines raise nothing narrower
            batch = self._encode_one_by_one(texts)
            if not batch.complaints:
                what = f"fails on texts that tokenizers encodes: {error}"
                raise EngineDiffersError(self.engine.name, what) from error
            return batch

    def parity_check(self) -> ParityCheck | None:
        """Begin to compare the engine with `tokenizers`; None if it is `tokenizers`."""
        if isinstance(self.engine, ReferenceEngine):
            return None
        return ParityCheck(self.engine, self._tokenizer)

    def _choose(self, wanted: str, warn: Callable[[str], None]) -> Engine:
        if wanted == REFERENCE:
            return ReferenceEngine(self._tokenizer)
        try:
            engine = FastEngine(self.content)
            check_before(engine, self._tokenizer)
        except EngineDiffersError as error:
            why = f"{error.engine} differs from tokenizers on this file: {error.what}"
        except Exception as error:  # no package, or a file that it does not take
            why = f"{FAST} cannot be used: {error}" if has_fast_engine() else f"no {FAST} installed"
        else:
            return engine
        if wanted == FAST:
            raise DataError(f"{self.path} - {why} - use --engine {AUTOMATIC}")
        warn(f"WARNING {self.path}: {why}. Using tokenizers, which is some forty times slower.")
        return ReferenceEngine(self._tokenizer)

    def _encode_one_by_one(self, texts: list[str]) -> Batch:
        reference = ReferenceEngine(self._tokenizer)
        rows, complaints = [], {}
        for i, text in enumerate(texts):
            try:
                rows.append(reference.encode([text]).ids)
            except Exception as error:  # tokenizers raises nothing narrower
                complaints[i] = str(error)
                rows.append(np.zeros(0, np.uint32))
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        return Batch(Encoded(np.concatenate(rows), lengths), complaints)

    def _eos_id(self, eos_token: str) -> int:
        eos_id = self._tokenizer.token_to_id(eos_token)
        if eos_id is None:
            special = [
                token.content
                for token in self._tokenizer.get_added_tokens_decoder().values()
                if token.special
            ]
            raise DataError(
                f"{self.path} - has no token {eos_token!r} to end documents with - give one with "
                f"--eos-token (its special tokens: {', '.join(special) or 'none'})"
            )
        return int(eos_id)


def read_tokenizer(path: Path) -> tuple[bytes, Tokenizer]:
    """Read a tokenizer.json; return its bytes and what they mean.

    Raises:
        DataError: the file cannot be read or holds no tokenizer.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} - cannot be read: {error.strerror} - {_REMEDY}") from error
    try:
        tokenizer = Tokenizer.from_str(content.decode("utf-8"))
    except Exception as error:  # tokenizers raises nothing narrower
        raise DataError(f"{path} - is no tokenizer: {error} - {_REMEDY}") from error
    if not tokenizer.get_vocab_size(with_added_tokens=True):
        raise DataError(f"{path} - has no tokens - {_REMEDY}")
    return content, tokenizer


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """Return the largest id plus one; ids may have gaps, so this is not their number."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
