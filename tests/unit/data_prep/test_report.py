# SPDX-License-Identifier: Apache-2.0
"""The problem report for people."""

from bt_megatron.data.manifest import ProblemRecord
from data_prep.report import describe_problems


def test_no_problems_no_lines():
    assert describe_problems([{}, {}]) == []


def test_counts_of_several_inputs_are_added_and_examples_capped():
    first = {"blank_line": ProblemRecord(count=1, examples=("a:1: x",))}
    second = {
        "blank_line": ProblemRecord(count=2000, examples=tuple(f"b:{i}: y" for i in range(5))),
        "empty_text": ProblemRecord(count=1, examples=("b:9: z",)),
    }
    assert describe_problems([first, {}, second]) == [
        "2,001 x blank_line: the line is skipped",
        "    a:1: x",
        *[f"    b:{i}: y" for i in range(4)],
        "    ... and 1,996 more",
        "1 x empty_text: the document is kept out",
        "    b:9: z",
    ]


def test_kind_of_a_later_version_is_shown_too():
    problems = {"new_kind": ProblemRecord(count=2, examples=("a:1: x", "a:2: x"))}
    assert describe_problems([problems])[0].startswith("2 x new_kind: a kind that this version")
