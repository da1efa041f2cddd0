# SPDX-License-Identifier: Apache-2.0
"""Token files that follow each other, read as one array of ids.

A .bin file may be published cut into pieces, `<prefix>-00000-of-00082.bin` to
`<prefix>-00082-of-00082.bin` (Pythia numbers them from 0 to the last one, both
included). They are mapped as they are: a run of ids that lies in one piece is a
view, one that crosses a cut is copied.
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bt_megatron.errors import DataError

REMEDY = "copy the shard again, or make it again with `python -m data_prep tokenize`"

_PIECE = re.compile(r"(?P<prefix>.+)-(?P<number>\d{5})-of-(?P<last>\d{5})\.bin")


class TokenPieces:
    """Ids of several arrays, numbered through."""

    def __init__(self, arrays: Sequence[NDArray[Any]]) -> None:
        """Line the arrays up.

        Args:
            arrays: [any] ids each; empty ones do no harm.
        """
        self._arrays = tuple(arrays)
        self._firsts = [0]
        for array in self._arrays:
            self._firsts.append(self._firsts[-1] + len(array))

    def __len__(self) -> int:
        """Return the ids of all pieces."""
        return self._firsts[-1]

    def __getitem__(self, place: slice | int) -> Any:
        """Return one id, or the ids of a slice without a step."""
        if isinstance(place, slice):
            start, stop, step = place.indices(len(self))
            assert step == 1, "pieces are read forwards, without gaps"
            return self.read(start, max(start, stop))
        return self.read(place, place + 1)[0]

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return ids [start, stop), a view if they lie in one piece."""
        piece = bisect_right(self._firsts, start) - 1
        if piece < len(self._arrays) and stop <= self._firsts[piece + 1]:
            first = self._firsts[piece]
            return self._arrays[piece][start - first : stop - first]
        parts = [
            array[max(start - first, 0) : max(stop - first, 0)]
            for array, first in zip(self._arrays, self._firsts[:-1], strict=True)
        ]
        parts = [part for part in parts if len(part)]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint16)


def bin_files(prefix: Path) -> tuple[Path, ...]:
    """Return the file or the pieces that hold a shard's ids, in order.

    Raises:
        DataError: there is no file, both a file and pieces, or a piece is missing.
    """
    whole = prefix.with_name(prefix.name + ".bin")
    pieces = _pieces_of(prefix)
    if not pieces:
        return (whole,)
    if whole.exists():
        raise DataError(
            f"{whole} - stands beside {len(pieces)} pieces such as {min(pieces.values())} - "
            "move the pieces away if they are joined in it, or remove it"
        )
    last = max(last for _, last in pieces)
    wanted = [(number, last) for number in range(last + 1)]
    missing = [key for key in wanted if key not in pieces]
    if missing or len(pieces) != len(wanted):
        number = missing[0][0] if missing else 0
        raise DataError(
            f"{prefix}-{number:05d}-of-{last:05d}.bin - {len(missing)} of {len(wanted)} pieces are "
            f"missing, {len(pieces)} are there - {REMEDY}"
        )
    return tuple(pieces[key] for key in wanted)


def _pieces_of(prefix: Path) -> dict[tuple[int, int], Path]:
    """Return the pieces of a shard by (number, last number)."""
    found = {}
    for path in prefix.parent.glob("*-of-*.bin"):
        match = _PIECE.fullmatch(path.name)
        if match and match["prefix"] == prefix.name:
            found[int(match["number"]), int(match["last"])] = path
    return found


def map_bytes(path: Path) -> NDArray[np.uint8]:
    """Map a file read-only; an empty file, which cannot be mapped, gives an empty array.

    Raises:
        DataError: it cannot be read.
    """
    try:
        if path.stat().st_size == 0:
            return np.zeros(0, dtype=np.uint8)
        return np.asarray(np.memmap(path, mode="r", dtype=np.uint8))
    except OSError as error:
        raise DataError(f"{path} - cannot be read: {error.strerror} - {REMEDY}") from error


def map_tokens(paths: Sequence[Path], dtype: np.dtype[Any]) -> list[NDArray[Any]]:
    """Map token files read-only.

    Raises:
        DataError: one cannot be read, or ends in the middle of an id.
    """
    arrays = []
    for path in paths:
        data = map_bytes(path)
        if len(data) % dtype.itemsize:
            raise DataError(
                f"{path} - has {len(data)} bytes, which are no whole ids of {dtype} - {REMEDY}"
            )
        arrays.append(data.view(dtype))
    return arrays
