# SPDX-License-Identifier: Apache-2.0
"""Documents of a JSON Lines input in The Pile's layout.

A line is `{"text": ..., "meta": {"pile_set_name": ...}}`. Without a subset
name the document counts as part of the subset `unnamed`.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import orjson

from data_prep.cuts import PART_CHARACTERS, NoPlaceToCutError, cut
from data_prep.long_line import LongLineError, LongString, parse_long_line
from data_prep.problems import ProblemKind, ProblemLog
from data_prep.streams import MAX_LINE_BYTES, LongLine, RawInput, read_blocks

UNNAMED_SUBSET = "unnamed"

_QUOTED_BYTES = 60
_MAX_WHOLE_CHARACTERS = 64 << 20
_TOO_DEEP = "depth limit exceeded"


class Document(NamedTuple):
    """A text that is worth tokenizing, or a part of one."""

    line: int
    """Line of the input, from 1."""
    text: str
    """The whole text holds more than whitespace."""
    subset: str
    """`meta.pile_set_name`."""
    more: bool = False
    """The next document is the next part of the same text, which is a long one."""


def read_documents(
    raw: RawInput, problems: ProblemLog, *, max_line_bytes: int = MAX_LINE_BYTES
) -> Iterator[Document]:
    """Yield the documents of an input; lines that hold none are reported and skipped.

    A text of more than about a million characters comes in parts, cut as `cuts.py` says.

    Args:
        raw: the input.
        problems: where lines without a usable text are reported.
        max_line_bytes: longest line that is read.

    Raises:
        DataError: at the first problem, if the log is strict.
    """
    for block in read_blocks(raw, problems, max_line_bytes=max_line_bytes):
        for number, line in enumerate(block.lines, block.first):
            fault, document = _parse_line(number, line)
            if fault is not None:
                problems.add(fault.kind, line=number, what=fault.what)
            elif isinstance(document, _LongDocument):
                yield from _parts(document)
            elif document is not None:
                yield document


def whole_documents(documents: Iterator[Document], problems: ProblemLog) -> Iterator[Document]:
    """Put parts together again, for who needs a text whole: up to 67 million characters.

    Args:
        documents: as `read_documents` yields them.
        problems: where longer texts are reported.
    """
    parts: list[str] = []
    size = 0
    for document in documents:
        size += len(document.text)
        if size <= _MAX_WHOLE_CHARACTERS:
            parts.append(document.text)
        if document.more:
            continue
        if size > _MAX_WHOLE_CHARACTERS:
            what = f"{size} characters are more than {_MAX_WHOLE_CHARACTERS}"
            problems.add(ProblemKind.TEXT_TOO_LONG, line=document.line, what=what)
        else:
            yield document._replace(text="".join(parts)) if len(parts) > 1 else document
        parts.clear()
        size = 0


class _LongDocument(NamedTuple):
    """A text that is cut into parts."""

    line: int
    text: str | LongString
    subset: str

    def parts(self) -> Iterator[str]:
        pieces = [self.text] if isinstance(self.text, str) else self.text.pieces()
        return cut(iter(pieces))


class _Fault(NamedTuple):
    kind: ProblemKind
    what: str


_Outcome = tuple[_Fault | None, Document | _LongDocument | None]


def _parts(document: _LongDocument) -> Iterator[Document]:
    parts = document.parts()
    part = next(parts)
    for following in parts:
        yield Document(document.line, part, document.subset, more=True)
        part = following
    yield Document(document.line, part, document.subset)


def _parse_line(number: int, line: bytes | LongLine) -> _Outcome:
    if isinstance(line, LongLine):
        return _parse_long(number, line)
    try:
        body = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return _broken_line(line, error), None
    return _check_body(number, body, line)


def _parse_long(number: int, line: LongLine) -> _Outcome:
    line.file.seek(0)
    start = line.file.read(_QUOTED_BYTES + 1)
    try:
        body = parse_long_line(line)
    except LongLineError as error:
        return _fault(ProblemKind.INVALID_JSON, str(error), start), None
    return _check_body(number, body, start)


def _check_body(number: int, body: Any, data: bytes) -> _Outcome:
    if not isinstance(body, dict):
        return _fault(ProblemKind.NOT_AN_OBJECT, f"a {type(body).__name__}, no object", data), None
    if "text" not in body:
        keys = ", ".join(sorted(body)[:8])
        return _fault(ProblemKind.MISSING_TEXT, f'no key "text" among [{keys}]', data), None
    return _check_text(number, body["text"], _subset_name(body.get("meta")), data)


def _check_text(number: int, text: Any, subset: str, data: bytes) -> _Outcome:
    if isinstance(text, LongString):
        return _check_long_text(_LongDocument(number, text, subset), data)
    if not isinstance(text, str):
        what = f'"text" is a {type(text).__name__}, expected a string'
        return _fault(ProblemKind.TEXT_NOT_A_STRING, what, data), None
    if not text:
        return _fault(ProblemKind.EMPTY_TEXT, "the text has no characters", data), None
    if text.isspace():
        what = f"the text is {len(text)} characters of whitespace"
        return _fault(ProblemKind.WHITESPACE_TEXT, what, data), None
    if len(text) > PART_CHARACTERS:
        return _check_long_text(_LongDocument(number, text, subset), data)
    return None, Document(number, text, subset)


def _check_long_text(document: _LongDocument, data: bytes) -> _Outcome:
    """Go through a text once, before the first of its parts is used."""
    try:
        blanks = [part.isspace() for part in document.parts()]  # all: each may be the last
    except NoPlaceToCutError:
        what = "millions of characters without whitespace between words or a digit after a letter"
        return _fault(ProblemKind.TEXT_WITHOUT_BREAK, what, data), None
    if all(blanks):
        return _fault(ProblemKind.WHITESPACE_TEXT, "the text is whitespace only", data), None
    return None, document


def _subset_name(meta: Any) -> str:
    name = meta.get("pile_set_name") if isinstance(meta, dict) else None
    return name if isinstance(name, str) and name else UNNAMED_SUBSET


def _broken_line(data: bytes, error: orjson.JSONDecodeError) -> _Fault:
    if not data or data.isspace():
        return _Fault(ProblemKind.BLANK_LINE, "nothing but whitespace on the line")
    if _TOO_DEEP in str(error):
        return _fault(ProblemKind.TOO_DEEP, "more than 1,024 lists or objects in another", data)
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as encoding_error:
        start = encoding_error.start
        what = f"byte {start + 1} of the line is {data[start]:#04x}, no UTF-8"
        return _fault(ProblemKind.INVALID_UTF8, what, data)
    return _fault(ProblemKind.INVALID_JSON, str(error), data)


def _fault(kind: ProblemKind, what: str, data: bytes) -> _Fault:
    """Quote the start of the line, escaped, so that it can be searched for."""
    quoted = repr(data[:_QUOTED_BYTES])[1:]
    return _Fault(kind, f"{what}: {quoted}{'...' if len(data) > _QUOTED_BYTES else ''}")
