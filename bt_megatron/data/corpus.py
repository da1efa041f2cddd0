# SPDX-License-Identifier: Apache-2.0
"""All token shards of a data folder as one list of documents."""

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bt_megatron.data.index import TokenShard
from bt_megatron.data.manifest import Manifest, ShardRecord, load_manifest
from bt_megatron.errors import DataError

_HASHED_TOKENS = 1 << 20


class TokenCorpus:
    """Documents of several memory-mapped shards, numbered through.

    Make one with `open` or `from_shards`.

    Attributes:
        shards: the shards, in the order of the corpus.
        lengths: [num_documents] int32 tokens of each document, without EOS.
        eos_id: token that ends a document; not stored in the shards.
        vocab_size: largest token id plus one.
        fingerprint: hex digest of what the corpus holds.
        tokenizer_path: the tokenizer.json that made the ids; none if not known.
    """

    def __init__(
        self,
        shards: Sequence[TokenShard],
        *,
        eos_id: int,
        vocab_size: int,
        fingerprint: str,
        tokenizer_path: Path | None,
    ) -> None:
        self.shards = tuple(shards)
        self.eos_id = eos_id
        self.vocab_size = vocab_size
        self.fingerprint = fingerprint
        self.tokenizer_path = tokenizer_path
        self.lengths = _all_lengths(self.shards)
        self._first_documents = [0]
        for shard in self.shards:
            self._first_documents.append(self._first_documents[-1] + shard.num_documents)

    @classmethod
    def open(cls, folder: Path | str) -> "TokenCorpus":
        """Map the shards that a data folder's manifest lists.

        The fingerprint is the manifest's, over the checksums of the shards;
        the shards' contents are not read (`data_prep verify` does that).

        Raises:
            DataError: the folder is incomplete or does not fit its manifest.
        """
        folder = Path(folder)
        manifest = load_manifest(folder)
        return cls(
            [_open_shard(folder, record, manifest) for record in manifest.shards],
            eos_id=manifest.tokenizer.eos_id,
            vocab_size=manifest.tokenizer.vocab_size,
            fingerprint=manifest.fingerprint,
            tokenizer_path=folder / manifest.tokenizer.file,
        )

    @classmethod
    def from_shards(
        cls, prefixes: Sequence[Path | str], *, eos_id: int, vocab_size: int
    ) -> "TokenCorpus":
        """Map shards that come without a manifest, such as published ones.

        The fingerprint is over all document lengths and the first 2**20
        tokens of each shard, since reading everything may take an hour.

        Args:
            prefixes: paths without .bin or .idx, in the order of the corpus.
            eos_id: token to put after each document.
            vocab_size: largest token id plus one.

        Raises:
            DataError: a shard is missing or damaged.
        """
        shards = [TokenShard(Path(prefix)) for prefix in prefixes]
        digest = hashlib.sha256(f"bare {eos_id}\n".encode())
        for shard in shards:
            digest.update(f"{shard.dtype} {shard.num_documents} {shard.num_tokens}\n".encode())
            digest.update(np.ascontiguousarray(shard.lengths))
            digest.update(np.ascontiguousarray(shard.tokens[:_HASHED_TOKENS]))
        return cls(
            shards,
            eos_id=eos_id,
            vocab_size=vocab_size,
            fingerprint=digest.hexdigest(),
            tokenizer_path=None,
        )

    @property
    def num_documents(self) -> int:
        """Documents of all shards."""
        return self._first_documents[-1]

    @property
    def num_tokens(self) -> int:
        """Tokens of all shards, without EOS and pads."""
        return sum(shard.num_tokens for shard in self.shards)

    def document(self, index: int) -> NDArray[Any]:
        """Return the ids of a document: [lengths[index]] in its shard's dtype, read-only.

        Raises:
            IndexError: there is no such document.
        """
        if not 0 <= index < self.num_documents:
            raise IndexError(f"document {index} of {self.num_documents}")
        # Shards without documents share their first index with the next shard; take the last.
        shard = bisect_right(self._first_documents, index) - 1
        return self.shards[shard].document(index - self._first_documents[shard])


def _all_lengths(shards: tuple[TokenShard, ...]) -> NDArray[np.int32]:
    if len(shards) == 1:
        return shards[0].lengths  # stays on disk
    return np.concatenate([np.zeros(0, dtype=np.int32), *(shard.lengths for shard in shards)])


def _open_shard(folder: Path, record: ShardRecord, manifest: Manifest) -> TokenShard:
    shard = TokenShard(folder / record.name)
    found = (shard.num_documents, shard.num_tokens, shard.dtype.name)
    expected = (record.documents, record.tokens, manifest.dtype)
    if found != expected:
        raise DataError(
            f"{folder / record.name} - holds {found[0]} documents and {found[1]} tokens of "
            f"{found[2]}, but manifest.json says {expected[0]} documents and {expected[1]} tokens "
            f"of {expected[2]} - copy the data folder again, or tokenize again"
        )
    return shard
