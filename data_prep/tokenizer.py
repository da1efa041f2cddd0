# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face `tokenizer.json`, as the tokenize command uses it.

Everything that makes ids goes through `TextTokenizer`, so that a faster engine
with the same ids can take its place.
"""

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from bt_megatron.data.manifest import TokenizerRecord
from bt_megatron.errors import DataError

FILE_NAME = "tokenizer.json"
DEFAULT_EOS = "<|endoftext|>"

_REMEDY = "give a tokenizer.json, or make one with `python -m data_prep train-tokenizer`"


class TextTokenizer:
    """Turns texts into ids without adding any token.

    Truncation and padding that the file may ask for are turned off: they would
    cut documents or put pads into them.

    Args:
        path: a tokenizer.json.
        eos_token: the token that ends a document.

    Raises:
        DataError: the file cannot be read, or the EOS token is not in it.
    """

    def __init__(self, path: Path, *, eos_token: str = DEFAULT_EOS) -> None:
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

    def encode(self, texts: list[str]) -> list[NDArray[np.int64] | str]:
        """Encode a batch.

        Args:
            texts: the documents.

        Returns:
            For each text its ids, or the tokenizer's complaint if it cannot encode it.
        """
        try:
            batch = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        except Exception as error:  # tokenizers raises nothing narrower
            if len(texts) == 1:
                return [str(error)]
            return [self.encode([text])[0] for text in texts]
        return [np.array(encoding.ids, dtype=np.int64) for encoding in batch]

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
