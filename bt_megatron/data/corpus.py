# SPDX-License-Identifier: Apache-2.0
"""All token shards of a data folder as one list of documents.

Opening a corpus reads sizes and headers only, so it takes milliseconds for any
corpus. The indices of the shards are read, and checked, when the documents are
asked for: to pack them, which is done once and offline (`packed_index.py`).
"""

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bt_megatron.data.index import ShardHeader, TokenShard, read_shard_header, shard_paths
from bt_megatron.data.manifest import Manifest, ShardRecord, load_manifest
from bt_megatron.data.pieces import TokenPieces, map_bytes, map_tokens
from bt_megatron.errors import DataError

_WINDOWS = 256
_WINDOW_BYTES = 1 << 14


class TokenCorpus:
    """Documents of several memory-mapped shards, numbered through.

    Make one with `open` or `from_shards`.

    Attributes:
        headers: what the shards are, in the order of the corpus.
        tokens: the ids of all shards, back to back; no EOS.
        eos_id: token that ends a document; not stored in the shards.
        vocab_size: largest token id plus one.
        fingerprint: hex digest of what the corpus holds.
        tokenizer_path: the tokenizer.json that made the ids; none if not known.
    """

    def __init__(
        self,
        headers: Sequence[ShardHeader],
        *,
        eos_id: int,
        vocab_size: int,
        fingerprint: str,
        tokenizer_path: Path | None,
    ) -> None:
        self.headers = tuple(headers)
        self.tokens = TokenPieces(
            [array for h in self.headers for array in map_tokens(h.bin_paths, h.dtype)]
        )
        self.eos_id = eos_id
        self.vocab_size = vocab_size
        self.fingerprint = fingerprint
        self.tokenizer_path = tokenizer_path
        self._first_documents = [0]
        for header in self.headers:
            self._first_documents.append(self._first_documents[-1] + header.num_documents)

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
            [_header_of(folder, record, manifest) for record in manifest.shards],
            eos_id=manifest.tokenizer.eos_id,
            vocab_size=manifest.tokenizer.vocab_size,
            fingerprint=manifest.fingerprint,
            tokenizer_path=folder / manifest.tokenizer.file,
        )

    @classmethod
    def from_shards(
        cls,
        prefixes: Sequence[Path | str],
        *,
        eos_id: int,
        vocab_size: int,
        tokenizer_path: Path | None = None,
        by_sequence: bool = False,
    ) -> "TokenCorpus":
        """Map shards that come without a manifest, such as published ones.

        The fingerprint is over the sizes and over 256 windows of 16 KiB, evenly
        spaced, of each index and of each shard's ids: reading everything may
        take an hour (`data_prep checksum` does). It is the same for a .bin file
        and for the pieces of it.

        Args:
            prefixes: paths without .bin or .idx, in the order of the corpus.
            eos_id: token to put after each document.
            vocab_size: largest token id plus one.
            tokenizer_path: the tokenizer.json that made the ids, if known.
            by_sequence: take each sequence for a document, whatever the index says of documents.

        Raises:
            DataError: a shard is missing or damaged.
        """
        headers = [read_shard_header(Path(p), by_sequence=by_sequence) for p in prefixes]
        return cls(
            headers,
            eos_id=eos_id,
            vocab_size=vocab_size,
            fingerprint=_fingerprint(headers, eos_id),
            tokenizer_path=tokenizer_path,
        )

    @cached_property
    def shards(self) -> tuple[TokenShard, ...]:
        """The shards with their indices, which are read and checked now.

        Raises:
            DataError: a shard is damaged.
        """
        return tuple(TokenShard(h.prefix, by_sequence=h.by_sequence) for h in self.headers)

    @cached_property
    def lengths(self) -> NDArray[np.int32]:
        """[num_documents] tokens of each document, without EOS."""
        if len(self.shards) == 1:
            return self.shards[0].lengths  # stays on disk
        return np.concatenate([np.zeros(0, dtype=np.int32), *(s.lengths for s in self.shards)])

    def starts(self) -> NDArray[np.int64]:
        """Return [num_documents] where each document begins in `tokens`."""
        starts = np.empty(self.num_documents, dtype=np.int64)
        first_token = 0
        for shard, first in zip(self.shards, self._first_documents, strict=False):
            part = starts[first : first + shard.num_documents]
            np.floor_divide(shard.starts, shard.dtype.itemsize, out=part)
            part += first_token
            first_token += shard.num_tokens
        return starts

    @property
    def num_documents(self) -> int:
        """Documents of all shards."""
        return self._first_documents[-1]

    @property
    def num_tokens(self) -> int:
        """Tokens of all shards, without EOS and pads."""
        return len(self.tokens)

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


def _header_of(folder: Path, record: ShardRecord, manifest: Manifest) -> ShardHeader:
    header = read_shard_header(folder / record.name)
    found = (header.num_documents, header.num_tokens, header.dtype.name)
    expected = (record.documents, record.tokens, manifest.dtype)
    if found != expected:
        raise DataError(
            f"{folder / record.name} - holds {found[0]} documents and {found[1]} tokens of "
            f"{found[2]}, but manifest.json says {expected[0]} documents and {expected[1]} tokens "
            f"of {expected[2]} - copy the data folder again, or tokenize again"
        )
    return header


def _fingerprint(headers: Sequence[ShardHeader], eos_id: int) -> str:
    digest = hashlib.sha256(f"bare 2 {eos_id}\n".encode())
    for header in headers:
        index = map_bytes(shard_paths(header.prefix)[1])
        arrays = map_tokens(header.bin_paths, header.dtype)
        ids = TokenPieces([array.view(np.uint8) for array in arrays])
        digest.update(f"{header.dtype} {header.num_documents} {header.num_tokens}\n".encode())
        for data in (TokenPieces([index]), ids):
            for start in _window_starts(len(data)):
                digest.update(np.ascontiguousarray(data.read(start, start + _WINDOW_BYTES)))
    return digest.hexdigest()


def _window_starts(size: int) -> list[int]:
    """Space the windows over `size` bytes, from the first byte to the last."""
    if size <= _WINDOWS * _WINDOW_BYTES:
        return list(range(0, size, _WINDOW_BYTES))
    last = size - _WINDOW_BYTES
    return [last * i // (_WINDOWS - 1) for i in range(_WINDOWS)]
