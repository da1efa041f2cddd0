# SPDX-License-Identifier: Apache-2.0
"""What the ids of a tokenizer.json mean, without the tokenizers library."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from bt_megatron.errors import DataError


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The ids of a tokenizer."""

    ids: dict[str, int]
    """Every token, added ones included."""

    @property
    def size(self) -> int:
        """Largest id plus one."""
        return max(self.ids.values()) + 1

    @property
    def digest(self) -> str:
        """Hex digest of tokens and ids; equal for files that differ in form only."""
        return hashlib.sha256(json.dumps(self.ids, sort_keys=True).encode()).hexdigest()


def read_vocabulary(path: Path) -> Vocabulary:
    """Read the tokens and ids of a tokenizer.json.

    Raises:
        DataError: the file cannot be read, or is none.
    """
    remedy = "name a tokenizer.json of the Hugging Face tokenizers library"
    try:
        body = json.loads(path.read_bytes())
        ids = dict(body["model"]["vocab"])
        ids |= {token["content"]: token["id"] for token in body.get("added_tokens") or ()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} - cannot be read as a tokenizer: {type(error).__name__} {error} - {remedy}"
        ) from error
    if not ids or not all(type(number) is int for number in ids.values()):
        raise DataError(f"{path} - has no vocabulary of tokens and ids - {remedy}")
    return Vocabulary(ids)
