# SPDX-License-Identifier: Apache-2.0
"""Bytes of an input: opened, counted, hashed, decompressed and cut into lines.

zstd and gzip are told by their first bytes, not by the file name. Streams of
several frames, as `cat a.zst b.zst`, pzstd and bgzip make them, are read whole.
zstandard's own stream reader takes a cut-off frame for the end of the file, so
frames are followed here one by one.
"""

import hashlib
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol, Self

import zstandard

from bt_megatron.errors import DataError
from data_prep.problems import ProblemKind, ProblemLog

STDIN = Path("-")

MAX_LINE_BYTES = 1 << 30

_READ_BYTES = 1 << 16
_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = range(0x184D2A50, 0x184D2A60)
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# Frames of `zstd --ultra --long=31` refer back this far.
_MAX_ZSTD_WINDOW = 1 << 31


class Line(NamedTuple):
    """One line of an input, without its newline."""

    number: int
    """Counted from 1."""
    data: bytes
    """As in the input, decompressed."""


class RawInput:
    """The bytes of a file, or of standard input for `-`, counted and hashed as they are read."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.bytes_read = 0
        self._hash = hashlib.sha256()
        self._stream = _open(path)

    @property
    def sha256(self) -> str:
        """Hex digest of what was read so far."""
        return self._hash.hexdigest()

    def read(self) -> bytes:
        """Read the next piece; empty at the end.

        Raises:
            DataError: the operating system cannot read on.
        """
        try:
            piece = self._stream.read(_READ_BYTES)
        except OSError as error:
            raise DataError(
                f"{self.name} - cannot be read after byte {self.bytes_read}: {error.strerror} - "
                "run the same command again"
            ) from error
        self.bytes_read += len(piece)
        self._hash.update(piece)
        return piece

    def drain(self) -> None:
        """Read and hash what is left, where decompression had to give up."""
        while self.read():
            pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream is not sys.stdin.buffer:
            self._stream.close()


def read_lines(
    raw: RawInput, problems: ProblemLog, *, max_line_bytes: int = MAX_LINE_BYTES
) -> Iterator[Line]:
    r"""Yield the lines of an input, compressed or not.

    Lines end at b"\n" only: U+2028, U+0085 and their like may stand inside a
    JSON string. A byte order mark in front of the first line is dropped. Where
    the input is cut off or damaged, the lines before that are yielded, and the
    unfinished line and the rest are reported.

    Args:
        raw: the input.
        problems: where cut-off, damaged and overlong input is reported.
        max_line_bytes: a longer line is reported and skipped, so that a file
            without newlines does not fill the memory.
    """
    splitter = _LineSplitter(problems, max_line_bytes)
    try:
        for piece in _decompress(raw):
            yield from splitter.feed(piece)
    except _BrokenStreamError as broken:
        what = f"{broken} (an unfinished line of {splitter.pending_bytes} bytes is lost)"
        problems.add(broken.kind, line=splitter.number, what=what)
        raw.drain()
        return
    yield from splitter.finish()


class _Decompressor(Protocol):
    """What zstandard's and zlib's decompression objects have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


class _BrokenStreamError(Exception):
    """Compressed input that cannot be read on."""

    def __init__(self, kind: ProblemKind, what: str) -> None:
        super().__init__(what)
        self.kind = kind


class _LineSplitter:
    """Cuts pieces of any size into lines; work is linear in the bytes also for huge lines."""

    def __init__(self, problems: ProblemLog, max_line_bytes: int) -> None:
        self.number = 1
        self.pending_bytes = 0
        self._problems = problems
        self._limit = max_line_bytes
        self._pending: list[bytes] = []

    def feed(self, piece: bytes) -> Iterator[Line]:
        *complete, rest = piece.split(b"\n")
        for end in complete:
            self._append(end)
            yield from self._take()
        self._append(rest)

    def finish(self) -> Iterator[Line]:
        if self.pending_bytes:
            yield from self._take()

    def _append(self, part: bytes) -> None:
        self.pending_bytes += len(part)
        if self.pending_bytes <= self._limit:
            self._pending.append(part)
        else:
            self._pending.clear()

    def _take(self) -> Iterator[Line]:
        if self.pending_bytes > self._limit:
            what = f"{self.pending_bytes} bytes are more than {self._limit}"
            self._problems.add(ProblemKind.LINE_TOO_LONG, line=self.number, what=what)
        else:
            data = b"".join(self._pending)
            yield Line(
                self.number, data.removeprefix(_BYTE_ORDER_MARK) if self.number == 1 else data
            )
        self._pending.clear()
        self.pending_bytes = 0
        self.number += 1


def _open(path: Path) -> BinaryIO:
    if path == STDIN:
        return sys.stdin.buffer
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path} - cannot be opened: {error.strerror} - check the path") from error


def _decompress(raw: RawInput) -> Iterator[bytes]:
    """Yield decompressed pieces; raise _BrokenStreamError where they end too early."""
    piece = raw.read()
    start_frame = _frame_type(piece, raw.name)
    if start_frame is None:
        while piece:
            yield piece
            piece = raw.read()
        return
    frame, inside = start_frame(), False
    while piece:
        try:
            yield frame.decompress(piece)
        except (zstandard.ZstdError, zlib.error) as error:
            what = f"cannot be decompressed near byte {raw.bytes_read}: {error}"
            raise _BrokenStreamError(ProblemKind.DAMAGED_COMPRESSION, what) from error
        inside = not frame.eof
        piece = b""
        if frame.eof:
            piece, frame = frame.unused_data, start_frame()
        piece = piece or raw.read()
    if inside:
        what = f"ends inside a compressed frame, after byte {raw.bytes_read}"
        raise _BrokenStreamError(ProblemKind.TRUNCATED_FILE, what)


def _frame_type(first: bytes, name: str) -> Callable[[], _Decompressor] | None:
    """Tell the compression from the first bytes; None for plain text."""
    if first.startswith(_GZIP_MAGIC):
        return lambda: zlib.decompressobj(wbits=31)
    skippable = len(first) >= 4 and int.from_bytes(first[:4], "little") in _ZSTD_SKIPPABLE
    if first.startswith(_ZSTD_MAGIC) or skippable:
        context = zstandard.ZstdDecompressor(max_window_size=_MAX_ZSTD_WINDOW)
        return context.decompressobj
    if name.endswith((".zst", ".gz")):
        kind = ProblemKind.DAMAGED_COMPRESSION if first else ProblemKind.TRUNCATED_FILE
        raise _BrokenStreamError(kind, f"does not start as its name says: {first[:4]!r}")
    return None
