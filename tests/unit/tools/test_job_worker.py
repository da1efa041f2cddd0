# SPDX-License-Identifier: Apache-2.0
import pytest

from tests.ranks import run_ranks  # noqa: F401  imports Megatron as it must be
from tools.job_worker import one_line


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("first\nsecond"), "ValueError: first"),
        (AssertionError(), "AssertionError"),
        (RuntimeError("\n  indented\n"), "RuntimeError: indented"),
    ],
    ids=["many lines", "no text", "blank line first"],
)
def test_an_error_is_one_line(error, expected):
    assert one_line(error) == expected
