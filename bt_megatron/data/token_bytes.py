# SPDX-License-Identifier: Apache-2.0
"""How many bytes of text each token id stands for.

Bits per byte (The Pile, arXiv 2101.00027, section 3.1) compares models of
different tokenizers; it needs the bytes of the tokens that were predicted.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bt_megatron.errors import DataError


def token_byte_lengths(tokenizer_json: Path | str, vocab_size: int) -> NDArray[np.int32]:
    """Count the UTF-8 bytes of every token of a byte-level BPE tokenizer.

    In a byte-level vocabulary one character stands for one byte (GPT-2,
    encoder.py: bytes_to_unicode). Added tokens are plain text. Over the ids of
    an encoded text the lengths sum to the bytes of the text as the tokenizer
    has normalized it.

    Args:
        tokenizer_json: a tokenizer.json of the `tokenizers` library.
        vocab_size: rows of the model's token tables; those without a token count 0.

    Returns:
        [vocab_size] bytes; 0 for special tokens, which are not text.

    Raises:
        DataError: the file is not a byte-level BPE tokenizer, or has an id
            beyond vocab_size.
    """
    path = Path(tokenizer_json)
    tokenizer = _read(path)
    lengths = {index: len(token) for token, index in tokenizer["model"]["vocab"].items()}
    for token in tokenizer.get("added_tokens") or ():
        lengths[token["id"]] = 0 if token["special"] else len(token["content"].encode())
    largest = max(lengths, default=-1)
    if largest >= vocab_size:
        raise DataError(
            f"{path} - token id {largest} does not fit model.vocab_size {vocab_size} - set "
            f"model.vocab_size to {largest + 1} or more"
        )
    result = np.zeros(vocab_size, dtype=np.int32)
    result[list(lengths)] = list(lengths.values())
    return result


def _read(path: Path) -> dict[str, Any]:
    try:
        tokenizer = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} - cannot be read as a tokenizer: {error} - tokenize the data again"
        ) from error
    if not isinstance(tokenizer, dict) or not _is_byte_level_bpe(tokenizer):
        raise DataError(
            f"{path} - not a byte-level BPE tokenizer, so its tokens have no fixed number of "
            "bytes - use one whose model is BPE and whose decoder is ByteLevel"
        )
    return tokenizer


def _is_byte_level_bpe(tokenizer: dict[str, Any]) -> bool:
    decoder = tokenizer.get("decoder") or {}
    parts = decoder.get("decoders", [decoder])
    model = tokenizer.get("model") or {}
    return isinstance(model.get("vocab"), dict) and any(
        part.get("type") == "ByteLevel" for part in parts
    )
