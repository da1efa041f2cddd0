# SPDX-License-Identifier: Apache-2.0
"""Megatron's token shards: `<prefix>.bin` holds ids, `<prefix>.idx` says whose.

The .idx file, little-endian (Megatron-Core: datasets/indexed_dataset.py):

    9 B  "MMIDIDX\\0\\0"       8 B  version 1            1 B  dtype code
    8 B  n sequences          8 B  d document boundaries
    int32[n] lengths          int64[n] byte offsets     int64[d] boundaries, 0 to n

The arrays start at byte 34, so views on the mapped file are not aligned: NumPy
copes, other readers need a copy. No torch here; `data_prep` writes with this
module and the trainer reads with it.
"""

import contextlib
import functools
import hashlib
import os
import struct
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from bt_megatron.data.pieces import REMEDY, TokenPieces, bin_files, map_bytes, map_tokens
from bt_megatron.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
_HEADER = struct.Struct("<9sQBQQ")

# Codes 6 and 7 are floats, and Megatron-Core (6 is float64) and GPT-NeoX and Pythia (6 is float32)
# disagree on which is which. No token is a float: both are refused. All others agree.
DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype("u1"),
    2: np.dtype("i1"),
    3: np.dtype("<i2"),
    4: np.dtype("<i4"),
    5: np.dtype("<i8"),
    8: np.dtype("<u2"),
}
_FLOATS = " (floats: float64 and float32 in Megatron-Core, the other way round in GPT-NeoX)"
_CODES = {dtype: code for code, dtype in DTYPES.items()}

# Megatron-Core: DType.optimal_dtype.
UINT16_VOCABULARY_LIMIT = 65_500
_MAX_DOCUMENT_TOKENS = 2**31 - 1


def token_dtype(vocab_size: int) -> str:
    """Name the narrowest type Megatron uses for the ids of a vocabulary."""
    return "uint16" if vocab_size < UINT16_VOCABULARY_LIMIT else "int32"


def shard_paths(prefix: Path) -> tuple[Path, Path]:
    """Name the .bin and the .idx file of a shard; the prefix may itself contain dots."""
    return prefix.with_name(prefix.name + ".bin"), prefix.with_name(prefix.name + ".idx")


class TokenShardWriter:
    """Writes one shard, one sequence per document, under temporary names.

    The files get their names in `close`, the .idx last, so a shard that can be
    opened is whole. As a context manager it closes on success and discards the
    temporary files on an exception. A shard without documents has an empty
    .bin, which `TokenShard` reads and Megatron-Core cannot map.

    Args:
        prefix: path without .bin or .idx; its folder exists.
        dtype: "uint16" or "int32", or another integer type of `DTYPES`.

    Attributes:
        bin_sha256: of the .bin file, hashed as it is written.
        idx_sha256: of the .idx file, once it is closed.
    """

    def __init__(self, prefix: Path, dtype: str) -> None:
        self.dtype = np.dtype(dtype).newbyteorder("<")
        if self.dtype not in _CODES:
            known = ", ".join(str(known) for known in _CODES)
            raise DataError(f"{prefix} - {dtype} is no type of token ids - use one of: {known}")
        self.idx_sha256 = ""
        self._bounds = np.iinfo(self.dtype)
        self._bin_path, self._idx_path = shard_paths(prefix)
        self._lengths = array("i")
        self._hash = hashlib.sha256()
        self._bin = _temporary(self._bin_path).open("wb")

    @property
    def bin_sha256(self) -> str:
        """Hex digest of the ids so far."""
        return self._hash.hexdigest()

    def add_document(self, ids: Sequence[int] | NDArray[Any]) -> None:
        """Append the ids of one document; nothing is added to them.

        Raises:
            DataError: as `add_documents`.
        """
        self.add_documents(np.asarray(ids), np.array([len(ids)]))

    def add_documents(self, ids: NDArray[Any], lengths: NDArray[Any]) -> None:
        """Append documents back to back.

        Args:
            ids: [tokens]; the last ones may be the start of a document that is not among
                `lengths`, but will be in a later call.
            lengths: tokens of each document that ends here.

        Raises:
            DataError: an id does not fit the type, or a document is too long
                for Megatron's int32 lengths.
            OSError: the disk is full; the error has the name of the file.
        """
        if len(lengths) and lengths.max() > _MAX_DOCUMENT_TOKENS:
            document = len(self._lengths) + int(lengths.argmax())
            raise DataError(
                f"{self._bin_path}: document {document} - {lengths.max()} tokens are more "
                f"than a shard can index ({_MAX_DOCUMENT_TOKENS}) - split the text"
            )
        if len(ids) and not (self._bounds.min <= ids.min() and ids.max() <= self._bounds.max):
            raise DataError(
                f"{self._bin_path}: document {len(self._lengths)} and on - ids {ids.min()} to "
                f"{ids.max()} do not fit {self.dtype} ({self._bounds.min} to "
                f"{self._bounds.max}) - write the shard as int32"
            )
        content = np.ascontiguousarray(ids, dtype=self.dtype)
        with _named(self._bin_path):
            self._bin.write(content)
        self._hash.update(content)
        self._lengths.frombytes(lengths.astype("i").tobytes())

    def close(self) -> None:
        """Write the index and give both files their names."""
        index = index_bytes(np.array(self._lengths, dtype="<i4"), self.dtype)
        self.idx_sha256 = hashlib.sha256(index).hexdigest()
        with _named(self._bin_path):
            _flush_to_disk(self._bin)
        with _named(self._idx_path), _temporary(self._idx_path).open("wb") as stream:
            stream.write(index)
            _flush_to_disk(stream)
        _temporary(self._bin_path).replace(self._bin_path)
        _temporary(self._idx_path).replace(self._idx_path)

    def discard(self) -> None:
        """Remove what was written so far."""
        with contextlib.suppress(OSError):  # of a full disk, once more
            self._bin.close()
        _temporary(self._bin_path).unlink(missing_ok=True)
        _temporary(self._idx_path).unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.discard()
            return
        try:
            self.close()
        except BaseException:
            self.discard()
            raise


def index_bytes(lengths: NDArray[np.int32], dtype: np.dtype[Any]) -> bytes:
    """Return the .idx file of documents of one sequence each.

    Args:
        lengths: [documents] ids of each.
        dtype: type of the ids, one of `DTYPES`.
    """
    n = len(lengths)
    ends = np.cumsum(lengths, dtype="<i8") * dtype.itemsize
    return b"".join(
        (
            _HEADER.pack(MAGIC, VERSION, _CODES[dtype], n, n + 1),
            lengths.astype("<i4").tobytes(),
            (ends - lengths * np.int64(dtype.itemsize)).astype("<i8").tobytes(),
            np.arange(n + 1, dtype="<i8").tobytes(),
        )
    )


@dataclass(frozen=True, slots=True)
class ShardHeader:
    """What the sizes of a shard's files and the start of its index say of it."""

    prefix: Path
    """Path without .bin or .idx."""
    bin_paths: tuple[Path, ...]
    """The .bin file, or its pieces in order."""
    dtype: np.dtype[Any]
    """Type of the ids."""
    num_sequences: int
    num_boundaries: int
    """Documents plus one."""
    num_tokens: int
    """Ids in the .bin files."""
    by_sequence: bool = False
    """Each sequence counts as a document, whatever the boundaries say."""

    @property
    def num_documents(self) -> int:
        """How many documents the shard holds."""
        return self.num_sequences if self.by_sequence else self.num_boundaries - 1


def read_shard_header(prefix: Path, *, by_sequence: bool = False) -> ShardHeader:
    """Read what can be known of a shard without reading it, in O(1).

    Raises:
        DataError: a file is missing, or is no index, or is cut off.
    """
    bin_paths = bin_files(prefix)
    index_path = shard_paths(prefix)[1]
    dtype, n, d = _read_header(index_path, map_bytes(index_path))
    num_tokens = sum(len(array) for array in map_tokens(bin_paths, dtype))
    return ShardHeader(prefix, bin_paths, dtype, n, d, num_tokens, by_sequence)


class TokenShard:
    """The documents of one shard, memory-mapped and checked on opening.

    A document may span several sequences, as long as the .bin file holds them
    one after another; the .bin file may be cut into pieces (`pieces.py`).
    Pickles as its path, so that workers map it anew.

    Args:
        prefix: path without .bin or .idx.
        by_sequence: take each sequence for a document, and do not look at the boundaries.

    Raises:
        DataError: a file is missing, is no index, or the two do not fit together.
    """

    def __init__(self, prefix: Path, *, by_sequence: bool = False) -> None:
        self.prefix = Path(prefix)
        self._by_sequence = by_sequence
        self._idx_path = shard_paths(self.prefix)[1]
        index = map_bytes(self._idx_path)
        self.dtype, n, d = _read_header(self._idx_path, index)
        at = _HEADER.size
        lengths = np.frombuffer(index, "<i4", n, at)
        offsets = np.frombuffer(index, "<i8", n, at + 4 * n)
        boundaries = np.frombuffer(index, "<i8", d, at + 12 * n)
        self.num_tokens = self._check_sequences(lengths, offsets)
        if not by_sequence:
            self._check_boundaries(boundaries, n)
        self._tokens = self._map_tokens()
        self._starts, self._lengths = self._documents(lengths, offsets, boundaries)

    @property
    def num_documents(self) -> int:
        """How many documents the shard holds."""
        return len(self._lengths)

    @property
    def lengths(self) -> NDArray[np.int32]:
        """[num_documents] tokens of each document, read-only."""
        return self._lengths

    @property
    def starts(self) -> NDArray[np.int64]:
        """[num_documents] bytes from the start of the .bin file to each document, read-only."""
        return self._starts

    @property
    def tokens(self) -> Any:
        """[num_tokens] ids of all documents back to back, read-only.

        A NumPy array, or `TokenPieces` if the .bin file is cut into pieces.
        """
        return self._tokens

    def document(self, i: int) -> NDArray[Any]:
        """Return the ids of document i: [lengths[i]] in the shard's dtype, read-only."""
        start = int(self._starts[i]) // self.dtype.itemsize
        return self._tokens[start : start + int(self._lengths[i])]

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return functools.partial(TokenShard, by_sequence=self._by_sequence), (self.prefix,)

    def _check_sequences(self, lengths: NDArray[np.int32], offsets: NDArray[np.int64]) -> int:
        """Check that sequences fill the .bin file without gaps; return the tokens in it."""
        if len(lengths) and lengths.min() < 0:
            worst = int(lengths.argmin())
            self._damaged(f"sequence {worst} has the length {lengths[worst]}")
        ends = np.cumsum(lengths, dtype=np.int64) * self.dtype.itemsize
        expected = ends - lengths.astype(np.int64) * self.dtype.itemsize
        if not np.array_equal(offsets, expected):
            first = int((offsets != expected).argmax())
            self._damaged(
                f"sequence {first} starts at byte {offsets[first]}, but the sequences before it "
                f"end at byte {expected[first]}"
            )
        return int(ends[-1]) // self.dtype.itemsize if len(ends) else 0

    def _check_boundaries(self, boundaries: NDArray[np.int64], n: int) -> None:
        if not len(boundaries) or boundaries[0] != 0 or boundaries[-1] != n:
            ends = f"{boundaries[0]} to {boundaries[-1]}" if len(boundaries) else "absent"
            self._damaged(f"its document boundaries are {ends} instead of 0 to {n}")
        if (backwards := np.flatnonzero(boundaries[1:] < boundaries[:-1])).size:
            self._damaged(f"document {backwards[0]} ends before it starts")

    def _documents(
        self, lengths: NDArray[np.int32], offsets: NDArray[np.int64], boundaries: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Return byte offsets and lengths by document; views if one is one sequence."""
        n = len(lengths)
        if self._by_sequence or np.array_equal(boundaries, np.arange(n + 1)):
            return offsets, lengths
        starts = np.append(offsets, self.num_tokens * self.dtype.itemsize)[boundaries]
        sizes = np.diff(starts) // self.dtype.itemsize
        if len(sizes) and sizes.max() > _MAX_DOCUMENT_TOKENS:
            self._damaged(f"a document has {sizes.max()} tokens, more than {_MAX_DOCUMENT_TOKENS}")
        return starts[:-1], sizes.astype(np.int32)

    def _map_tokens(self) -> Any:
        paths = bin_files(self.prefix)
        size = sum(len(map_bytes(path)) for path in paths)
        expected = self.num_tokens * self.dtype.itemsize
        if size != expected:
            name = paths[0] if len(paths) == 1 else f"{self.prefix}-*.bin"
            raise DataError(
                f"{name} - has {size} bytes, but {self._idx_path.name} speaks of "
                f"{self.num_tokens} tokens of {self.dtype}, {expected} bytes - {REMEDY}"
            )
        arrays = map_tokens(paths, self.dtype)
        return arrays[0] if len(arrays) == 1 else TokenPieces(arrays)

    def _damaged(self, what: str) -> None:
        raise DataError(f"{self._idx_path} - {what} - {REMEDY}")


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Give an OSError of writing, which has no file name, that of the file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _flush_to_disk(stream: Any) -> None:
    stream.flush()
    os.fsync(stream.fileno())
    stream.close()


def _read_header(path: Path, index: NDArray[np.uint8]) -> tuple[np.dtype[Any], int, int]:
    """Check the fixed part of an index; return dtype, sequences, document boundaries."""
    if len(index) < _HEADER.size or index[: len(MAGIC)].tobytes() != MAGIC:
        raise DataError(
            f"{path} - starts with {index[: len(MAGIC)].tobytes()!r} instead of {MAGIC!r}, so it "
            f"is no index of Megatron's IndexedDataset - {REMEDY}"
        )
    _, version, code, n, d = _HEADER.unpack(index[: _HEADER.size].tobytes())
    if version != VERSION:
        raise DataError(f"{path} - has version {version}, expected {VERSION} - {REMEDY}")
    if code not in DTYPES:
        raise DataError(
            f"{path} - has dtype code {code}{_FLOATS if code in (6, 7) else ''}, expected one of "
            f"{sorted(DTYPES)} - tokenize again"
        )
    if d == 0:
        raise DataError(f"{path} - its document boundaries are absent - {REMEDY}")
    expected = _HEADER.size + 12 * n + 8 * d
    if len(index) != expected:
        raise DataError(
            f"{path} - has {len(index)} bytes, but {n} sequences and {d} document boundaries take "
            f"{expected} - {REMEDY}"
        )
    return DTYPES[code], n, d
