# SPDX-License-Identifier: Apache-2.0
"""Windows over long texts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bt_megatron.evaluation.likelihood import rolling_requests

texts = st.lists(st.integers(1, 99), max_size=60)
lengths = st.integers(1, 20)


@given(texts, lengths)
def test_each_token_is_scored_once_after_those_before_it(tokens, max_length):
    requests = list(rolling_requests(tokens, first_context=0, max_length=max_length))

    known = [0]
    for request in requests:
        assert len(request.context) + len(request.continuation) <= max_length + 1
        assert list(request.context) == known[-len(request.context) :]
        known += request.continuation
    assert known == [0, *tokens]


@given(texts, lengths)
def test_windows_are_those_of_lm_eval(tokens, max_length):
    utils = pytest.importorskip("lm_eval.utils", reason="lm-eval is not installed")
    theirs = utils.get_rolling_token_windows(
        tokens, prefix_token=0, max_seq_len=max_length, context_len=1
    )
    expected = [tuple(map(list, utils.make_disjoint_window(window))) for window in theirs]

    ours = rolling_requests(tokens, first_context=0, max_length=max_length)
    assert [(list(r.context), list(r.continuation)) for r in ours] == expected
