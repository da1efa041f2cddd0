# SPDX-License-Identifier: Apache-2.0
"""Exact counts, few examples, and a consequence in words for each kind."""

import pytest

from bt_megatron.errors import DataError
from data_prep.problems import CONSEQUENCES, MAX_EXAMPLES, ProblemKind, ProblemLog


def test_counts_are_exact_and_examples_few():
    log = ProblemLog("a.jsonl")
    for line in range(1, 1001):
        log.add(ProblemKind.EMPTY_TEXT, line=line, what="empty")
    log.add(ProblemKind.BLANK_LINE, line=7, what="blank")
    records = log.records()
    assert list(records) == ["blank_line", "empty_text"]
    assert records["empty_text"].count == 1000
    assert len(records["empty_text"].examples) == MAX_EXAMPLES
    assert records["blank_line"].examples == ("a.jsonl:7: blank",)
    assert log.total == 1001


def test_strict_log_raises():
    with pytest.raises(DataError, match="a:3: odd - invalid_json - "):
        ProblemLog("a", strict=True).add(ProblemKind.INVALID_JSON, line=3, what="odd")


def test_readme_explains_every_kind(repository):
    readme = (repository / "data_prep/README.md").read_text()
    rows = [line.split("|")[1:4:2] for line in readme.split("\n") if line.startswith("| `")]
    table = {kind.strip(" `"): done.strip() for kind, done in rows}
    for kind in ProblemKind:
        assert table[kind] == CONSEQUENCES[kind]
