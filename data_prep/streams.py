# SPDX-License-Identifier: Apache-2.0
"""Bytes of an input: opened, counted, hashed, decompressed and cut into lines.

zstd and gzip are told by their first bytes, not by the file name. Streams of
several frames, as `cat a.zst b.zst`, pzstd and bgzip make them, are read whole.
zstandard's own stream reader takes a cut-off frame for the end of the file, so
frames are followed here one by one.

Reading, hashing and decompressing go on in a thread of their own. Memory is
bounded: by a few pieces, and by `LONG_LINE_BYTES`, from which on a line is kept in
an unnamed temporary file.
"""

import hashlib
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple, Protocol, Self

import zstandard

from bt_megatron.errors import DataError
from data_prep.problems import ProblemKind, ProblemLog
from data_prep.read_ahead import read_ahead

STDIN = Path("-")

# The index of a shard counts the tokens of a document in 31 bits.
MAX_LINE_BYTES = (1 << 31) - 1
LONG_LINE_BYTES = 4 << 20

_READ_BYTES = 1 << 16
# Four bytes of zstd can stand for 128 KiB: what one call may decompress to is bounded by this.
_DECOMPRESS_BYTES = 1 << 12
_PIECE_BYTES = 1 << 20
_PIECES_AHEAD = 3
_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = range(0x184D2A50, 0x184D2A60)
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# Frames of `zstd --ultra --long=31` refer back this far.
_MAX_ZSTD_WINDOW = 1 << 31


class LongLine(NamedTuple):
    """A line that is not held in memory."""

    file: IO[bytes]
    """Holds the line and nothing else; gone once the next line is asked for."""
    size: int
    """Bytes."""


class LineBlock(NamedTuple):
    """Lines that follow one another, without their newlines."""

    first: int
    """Number of the first one, counted from 1."""
    lines: Sequence[bytes | LongLine]
    """As in the input, decompressed."""


class RawInput:
    """The bytes of a file, or of standard input for `-`, counted and hashed as they are read."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.bytes_read = 0
        self.is_standard_input = path == STDIN
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
        if not self.is_standard_input:
            self._stream.close()


def read_blocks(
    raw: RawInput, problems: ProblemLog, *, max_line_bytes: int = MAX_LINE_BYTES
) -> Iterator[LineBlock]:
    r"""Yield the lines of an input, compressed or not.

    Lines end at b"\n" only: U+2028, U+0085 and their like may stand inside a
    JSON string. A byte order mark in front of the first line is dropped. Where
    the input is cut off or damaged, the lines before that are yielded, and the
    unfinished line and the rest are reported.

    Args:
        raw: the input.
        problems: where cut-off, damaged and overlong input is reported.
        max_line_bytes: a longer line is reported and skipped, so that a file
            without newlines does not fill the disk.
    """
    splitter = _LineSplitter(problems, max_line_bytes)
    pieces = _joined(_decompress(raw))
    # A thread in a read that a terminal or a pipe does not answer could not be stopped.
    pieces = pieces if raw.is_standard_input else read_ahead(pieces, depth=_PIECES_AHEAD)
    try:
        for piece in pieces:
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
        self._in_memory = min(max_line_bytes, LONG_LINE_BYTES)
        self._pending: list[bytes] = []
        self._file: IO[bytes] | None = None

    def feed(self, piece: bytes) -> Iterator[LineBlock]:
        end, *lines = piece.split(b"\n")
        self._append(end)
        if not lines:
            return
        yield from self._take()
        start = lines.pop()
        if len(piece) <= self._in_memory:
            if lines:
                yield LineBlock(self.number, lines)
                self.number += len(lines)
        else:
            for line in lines:
                self._append(line)
                yield from self._take()
        self._append(start)

    def finish(self) -> Iterator[LineBlock]:
        if self.pending_bytes:
            yield from self._take()

    def _append(self, part: bytes) -> None:
        self.pending_bytes += len(part)
        if self.pending_bytes <= self._in_memory:
            self._pending.append(part)
        elif self.pending_bytes <= self._limit:
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115
            self._file.writelines([*self._pending, part])
            self._pending.clear()
        else:
            self._forget()

    def _take(self) -> Iterator[LineBlock]:
        if self.pending_bytes > self._limit:
            what = f"{self.pending_bytes} bytes are more than {self._limit}"
            self._problems.add(ProblemKind.LINE_TOO_LONG, line=self.number, what=what)
        elif self._file is not None:
            yield LineBlock(self.number, [LongLine(self._file, self.pending_bytes)])
        else:
            data = b"".join(self._pending)
            data = data.removeprefix(_BYTE_ORDER_MARK) if self.number == 1 else data
            yield LineBlock(self.number, [data])
        self._forget()
        self.pending_bytes = 0
        self.number += 1

    def _forget(self) -> None:
        self._pending.clear()
        if self._file is not None:
            self._file.close()
            self._file = None


def _open(path: Path) -> BinaryIO:
    if path == STDIN:
        return sys.stdin.buffer
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path} - cannot be opened: {error.strerror} - check the path") from error


def _joined(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Join small pieces, so that what is done for each does not count; also those before an error.

    A piece is never longer than `_PIECE_BYTES` and the longest of the pieces together.
    """
    held: list[bytes] = []
    size = 0
    try:
        for piece in pieces:
            held.append(piece)
            size += len(piece)
            if size >= _PIECE_BYTES:
                yield b"".join(held)
                held, size = [], 0
    except _BrokenStreamError:
        yield b"".join(held)
        raise
    yield b"".join(held)


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
        for start in range(0, len(piece), _DECOMPRESS_BYTES):
            data = piece[start : start + _DECOMPRESS_BYTES]
            while data:
                try:
                    yield frame.decompress(data)
                except (zstandard.ZstdError, zlib.error) as error:
                    what = f"cannot be decompressed near byte {raw.bytes_read}: {error}"
                    raise _BrokenStreamError(ProblemKind.DAMAGED_COMPRESSION, what) from error
                inside = not frame.eof
                data = b""
                if frame.eof:
                    data, frame = frame.unused_data, start_frame()
        piece = raw.read()
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
