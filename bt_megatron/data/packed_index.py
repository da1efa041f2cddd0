# SPDX-License-Identifier: Apache-2.0
"""Where each document lies in the packed stream, in memory or mapped from disk.

Four arrays, 22 bytes a document: 2.9 GB for the 134 million documents of the
deduplicated Pile. `python -m data_prep index` saves them, so that every rank of
a machine maps the same pages and a run starts without reading them:

    <folder>/<name>/starts.npy, sources.npy, lengths.npy, left_pads.npy
    <folder>/<name>/index.json     counts and sha256 of the arrays

A saved index has its name by rename, so one that can be opened is whole. The
name is the fingerprint of the dataset: it says of which corpus, split and
packing the index is.
"""

import os
import shutil
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bt_megatron.data.manifest import parse_record, read_json, sha256_of, write_json
from bt_megatron.errors import DataError

_RECORD = "index.json"
_REMEDY = "remove the folder, then make it again with `python -m data_prep index RUN.yaml`"


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedIndex:
    """The documents of a packed stream, in its order."""

    starts: NDArray[np.int64]
    """[documents + 1] positions where each document (its pads first) and the stream's end begin."""
    sources: NDArray[np.int64]
    """[documents] where the document's ids begin in the corpus."""
    lengths: NDArray[np.int32]
    """[documents] ids."""
    left_pads: NDArray[np.int16]
    """[documents] pads in front of them."""

    @property
    def num_documents(self) -> int:
        """Documents in the stream."""
        return len(self.sources)

    @property
    def num_tokens(self) -> int:
        """Length of the stream, EOS and pads included."""
        return int(self.starts[-1])


@dataclass(frozen=True, kw_only=True, slots=True)
class _Record:
    fingerprint: str
    documents: int
    tokens: int
    sha256: dict[str, str]


def index_folder(parent: Path, fingerprint: str) -> Path:
    """Name the folder of a saved index."""
    return parent / fingerprint[:32]


def save_index(index: PackedIndex, parent: Path, fingerprint: str) -> Path:
    """Write an index under another name and rename it; an index that is there stays.

    Args:
        index: the arrays.
        parent: folder of all indices; made if need be.
        fingerprint: of the dataset.

    Returns:
        The folder of the index.
    """
    folder = index_folder(parent, fingerprint)
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True, exist_ok=True)
    try:
        hashes = {}
        for name, array in _arrays(index).items():
            path = temporary / f"{name}.npy"
            np.save(path, array)
            hashes[name] = sha256_of(path)
        record = _Record(
            fingerprint=fingerprint,
            documents=index.num_documents,
            tokens=index.num_tokens,
            sha256=hashes,
        )
        write_json(temporary / _RECORD, asdict(record))
        if not folder.exists():
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def open_index(parent: Path, fingerprint: str) -> PackedIndex | None:
    """Map a saved index; its arrays are not read, whatever their size.

    Returns:
        The index, or None if there is none.

    Raises:
        DataError: it is there and not what its record says.
    """
    folder = index_folder(parent, fingerprint)
    if not folder.exists():
        return None
    record = _read_record(folder)
    arrays = {name: _map_array(folder / f"{name}.npy") for name in record.sha256}
    if set(arrays) != {field.name for field in fields(PackedIndex)}:
        raise DataError(f"{folder} - holds {sorted(arrays)}, of another version - {_REMEDY}")
    index = PackedIndex(**arrays)
    found = (index.num_documents, index.num_tokens, len(index.starts) - 1, fingerprint)
    expected = (record.documents, record.tokens, record.documents, record.fingerprint)
    if found != expected or len({len(a) for n, a in arrays.items() if n != "starts"}) != 1:
        raise DataError(
            f"{folder} - holds {found[0]} documents and {found[1]} tokens, its {_RECORD} says "
            f"{expected[0]} and {expected[1]} - {_REMEDY}"
        )
    return index


def find_damage(parent: Path, fingerprint: str) -> list[str]:
    """Hash the arrays of a saved index and say which are not what was written."""
    folder = index_folder(parent, fingerprint)
    record = _read_record(folder)
    return [
        f"{folder / name}.npy - has sha256 {found}, {_RECORD} says {expected}"
        for name, expected in record.sha256.items()
        if (found := sha256_of(folder / f"{name}.npy")) != expected
    ]


def _arrays(index: PackedIndex) -> dict[str, NDArray[Any]]:
    return {field.name: getattr(index, field.name) for field in fields(index)}


def _read_record(folder: Path) -> _Record:
    path = folder / _RECORD
    body = read_json(path, remedy=_REMEDY)
    return parse_record(_Record, body, where=str(path), remedy=_REMEDY)


def _map_array(path: Path) -> NDArray[Any]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} - cannot be mapped: {error} - {_REMEDY}") from error
    return np.asarray(array)
