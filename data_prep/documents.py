# SPDX-License-Identifier: Apache-2.0
"""Documents of a JSON Lines input in The Pile's layout.

A line is `{"text": ..., "meta": {"pile_set_name": ...}}`. Without a subset
name the document counts as part of the subset `unnamed`.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import orjson

from data_prep.problems import ProblemKind, ProblemLog
from data_prep.streams import MAX_LINE_BYTES, RawInput, read_lines

UNNAMED_SUBSET = "unnamed"

_QUOTED_BYTES = 60


class Document(NamedTuple):
    """A text that is worth tokenizing."""

    line: int
    """Line of the input, from 1."""
    text: str
    """Holds more than whitespace."""
    subset: str
    """`meta.pile_set_name`."""


def read_documents(
    raw: RawInput, problems: ProblemLog, *, max_line_bytes: int = MAX_LINE_BYTES
) -> Iterator[Document]:
    """Yield the documents of an input; lines that hold none are reported and skipped.

    Args:
        raw: the input.
        problems: where lines without a usable text are reported.
        max_line_bytes: longest line that is read.

    Raises:
        DataError: at the first problem, if the log is strict.
    """
    for number, data in read_lines(raw, problems, max_line_bytes=max_line_bytes):
        fault, document = _parse_line(number, data)
        if document is not None:
            yield document
        elif fault is not None:
            problems.add(fault.kind, line=number, what=fault.what)


class _Fault(NamedTuple):
    kind: ProblemKind
    what: str


_Outcome = tuple[_Fault | None, Document | None]


def _parse_line(number: int, data: bytes) -> _Outcome:
    if not data or data.isspace():
        return _Fault(ProblemKind.BLANK_LINE, "nothing but whitespace on the line"), None
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        return _broken_line(data, error), None
    if not isinstance(body, dict):
        return _fault(ProblemKind.NOT_AN_OBJECT, f"a {type(body).__name__}, no object", data), None
    if "text" not in body:
        keys = ", ".join(sorted(body)[:8])
        return _fault(ProblemKind.MISSING_TEXT, f'no key "text" among [{keys}]', data), None
    return _check_text(number, body["text"], _subset_name(body.get("meta")), data)


def _check_text(number: int, text: Any, subset: str, data: bytes) -> _Outcome:
    if not isinstance(text, str):
        what = f'"text" is a {type(text).__name__}, expected a string'
        return _fault(ProblemKind.TEXT_NOT_A_STRING, what, data), None
    if not text:
        return _fault(ProblemKind.EMPTY_TEXT, "the text has no characters", data), None
    if text.isspace():
        what = f"the text is {len(text)} characters of whitespace"
        return _fault(ProblemKind.WHITESPACE_TEXT, what, data), None
    return None, Document(number, text, subset)


def _subset_name(meta: Any) -> str:
    name = meta.get("pile_set_name") if isinstance(meta, dict) else None
    return name if isinstance(name, str) and name else UNNAMED_SUBSET


def _broken_line(data: bytes, error: orjson.JSONDecodeError) -> _Fault:
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
