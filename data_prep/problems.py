# SPDX-License-Identifier: Apache-2.0
"""What can be wrong with an input, and what is done about each kind.

Nothing is lost silently: every problem is counted exactly, the first few of
each kind are quoted with file and line, and with `strict` the first one stops
the command.
"""

from collections import Counter
from enum import StrEnum

from bt_megatron.data.manifest import ProblemRecord
from bt_megatron.errors import DataError

MAX_EXAMPLES = 5


class ProblemKind(StrEnum):
    """The kinds, as they are named in manifest.json."""

    BLANK_LINE = "blank_line"
    INVALID_UTF8 = "invalid_utf8"
    INVALID_JSON = "invalid_json"
    TOO_DEEP = "too_deep"
    NOT_AN_OBJECT = "not_an_object"
    MISSING_TEXT = "missing_text"
    TEXT_NOT_A_STRING = "text_not_a_string"
    EMPTY_TEXT = "empty_text"
    WHITESPACE_TEXT = "whitespace_text"
    LINE_TOO_LONG = "line_too_long"
    TEXT_WITHOUT_BREAK = "text_without_break"
    TEXT_TOO_LONG = "text_too_long"
    TOKENIZER_FAILED = "tokenizer_failed"
    NO_TOKENS = "no_tokens"
    TRUNCATED_FILE = "truncated_file"
    DAMAGED_COMPRESSION = "damaged_compression"


_LINE_SKIPPED = "the line is skipped"

CONSEQUENCES: dict[str, str] = {
    ProblemKind.BLANK_LINE: _LINE_SKIPPED,
    ProblemKind.INVALID_UTF8: _LINE_SKIPPED,
    ProblemKind.INVALID_JSON: _LINE_SKIPPED,
    ProblemKind.TOO_DEEP: _LINE_SKIPPED,
    ProblemKind.NOT_AN_OBJECT: _LINE_SKIPPED,
    ProblemKind.MISSING_TEXT: _LINE_SKIPPED,
    ProblemKind.TEXT_NOT_A_STRING: _LINE_SKIPPED,
    ProblemKind.EMPTY_TEXT: "the document is kept out",
    ProblemKind.WHITESPACE_TEXT: "the document is kept out",
    ProblemKind.LINE_TOO_LONG: _LINE_SKIPPED,
    ProblemKind.TEXT_WITHOUT_BREAK: "the document is kept out",
    ProblemKind.TEXT_TOO_LONG: "the document is kept out",
    ProblemKind.TOKENIZER_FAILED: "the document is kept out",
    ProblemKind.NO_TOKENS: "the document is kept out",
    ProblemKind.TRUNCATED_FILE: "whole lines that can be read are kept, the rest is not",
    ProblemKind.DAMAGED_COMPRESSION: "whole lines that can be read are kept, the rest is not",
}


class ProblemLog:
    """Collects the problems of one input.

    Args:
        source: name of the input, for messages.
        strict: stop at the first problem.
    """

    def __init__(self, source: str, *, strict: bool = False) -> None:
        self.source = source
        self.strict = strict
        self._counts: Counter[ProblemKind] = Counter()
        self._examples: dict[ProblemKind, list[str]] = {}

    @property
    def total(self) -> int:
        """Problems of all kinds so far."""
        return self._counts.total()

    def add(self, kind: ProblemKind, *, line: int, what: str) -> None:
        """Count one problem.

        Args:
            kind: what sort.
            line: line number, from 1.
            what: the particulars.

        Raises:
            DataError: the log is strict.
        """
        example = f"{self.source}:{line}: {what}"
        if self.strict:
            raise DataError(strict_message(kind, example))
        self._counts[kind] += 1
        examples = self._examples.setdefault(kind, [])
        if len(examples) < MAX_EXAMPLES:
            examples.append(example)

    def records(self) -> dict[str, ProblemRecord]:
        """Return the counts and examples by kind, ordered by name."""
        return {
            kind.value: ProblemRecord(count=self._counts[kind], examples=tuple(examples))
            for kind, examples in sorted(self._examples.items())
        }


def strict_message(kind: str, example: str) -> str:
    """Word the error with which `--strict` stops."""
    return f"{example} - {kind} - mend the input, or leave out --strict to skip and count it"
