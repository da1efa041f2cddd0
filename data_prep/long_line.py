# SPDX-License-Identifier: Apache-2.0
"""A JSON line of any size, read without ever holding it.

First pass: the line with every long string replaced by a placeholder, which is small and parsed as
any line is; long strings become places in the file. Second pass: a long string is decoded in
pieces that end between two characters.
"""

import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import orjson

from data_prep.streams import LongLine

_PIECE_BYTES = 1 << 20
_SHORT_STRING_BYTES = 1 << 16
_MAX_SKELETON_BYTES = 16 << 20

# What a string goes on with up to its quotation mark, and a backslash at the end of a piece.
_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
# Whole characters of a string: no half escapes, no half pairs of surrogates.
_CHARACTERS = re.compile(
    rb"(?:[^\\]++|\\[^u]"
    rb"|\\u(?![dD][89a-fA-F])[0-9a-fA-F]{4}"
    rb"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})*+",
    re.DOTALL,
)


class LongLineError(Exception):
    """A long line that is no JSON, or has too much outside of its strings."""


@dataclass(frozen=True, slots=True)
class LongString:
    """A string value that stays in the file."""

    file: IO[bytes]
    start: int
    """Byte of the line behind its opening quotation mark."""
    end: int
    """Byte of its closing quotation mark."""

    def pieces(self) -> Iterator[str]:
        """Decode the string, about a megabyte at a time.

        Raises:
            LongLineError: it is no UTF-8, or holds an escape that is none.
        """
        self.file.seek(self.start)
        left, rest = self.end - self.start, b""
        while left or rest:
            piece = rest + self.file.read(min(_PIECE_BYTES, left))
            left -= len(piece) - len(rest)
            stop = _whole_characters(piece) if left else len(piece)
            try:
                text: str = orjson.loads(b'"%b"' % piece[: stop or len(piece)])
            except orjson.JSONDecodeError as error:
                at = self.end - left - len(piece)
                raise LongLineError(f"{error}, counted from byte {at} of the line") from error
            rest = piece[stop:]
            yield text


def parse_long_line(line: LongLine) -> Any:
    """Parse a line; string values of more than 64 KiB, if they are sound, become `LongString`.

    Raises:
        LongLineError: the line is no JSON, or too large without its strings.
    """
    mark = secrets.token_hex(16)
    skeleton, strings = _scan(line.file, mark)
    try:
        body = orjson.loads(skeleton)
    except orjson.JSONDecodeError as error:
        raise LongLineError(f"{error}, counted without long strings") from error
    for string in strings:
        for _ in string.pieces():
            pass
    if not isinstance(body, dict):
        return body
    by_mark: dict[Any, LongString] = {f"{mark}{i}": string for i, string in enumerate(strings)}
    return {
        key: by_mark.get(value, value) if isinstance(value, str) else value
        for key, value in body.items()
    }


def _scan(file: IO[bytes], mark: str) -> tuple[bytes, list[LongString]]:
    """Return the line with marks instead of long strings, and these."""
    skeleton, short = bytearray(), bytearray()
    strings: list[LongString] = []
    inside, escaped, start, position = False, False, 0, 0
    file.seek(0)
    while piece := file.read(_PIECE_BYTES):
        at = 0
        while at < len(piece):
            if not inside:
                end = piece.find(b'"', at) + 1 or len(piece)
                skeleton += piece[at:end]
                inside = piece[end - 1 : end] == b'"'
                at, start = end, position + end
                short.clear()
                if len(skeleton) > _MAX_SKELETON_BYTES:
                    raise LongLineError(f"more than {_MAX_SKELETON_BYTES} bytes outside of strings")
                continue
            match = _STRING.match(piece, at + escaped)
            end = match.end() if match else at
            inside = end >= len(piece) or piece[end : end + 1] == b"\\"
            escaped = piece[end : end + 1] == b"\\"
            end = len(piece) if inside else end
            if len(short) <= _SHORT_STRING_BYTES:
                short += piece[at:end]
            if not inside:
                if position + end - start <= _SHORT_STRING_BYTES:
                    skeleton += short + b'"'
                else:
                    skeleton += f'{mark}{len(strings)}"'.encode()
                    strings.append(LongString(file, start, position + end))
                end += 1
            at = end
        position += len(piece)
    return bytes(skeleton), strings


def _whole_characters(piece: bytes) -> int:
    """Return how many bytes of a piece hold whole characters of JSON and of UTF-8."""
    match = _CHARACTERS.match(piece)
    stop = match.end() if match else 0
    for back in range(1, min(4, stop + 1)):
        byte = piece[stop - back]
        if byte >= 0xC0:
            size = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return stop - back if size > back else stop
        if byte < 0x80:
            break
    return stop
