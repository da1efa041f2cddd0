# SPDX-License-Identifier: Apache-2.0
"""The comparison measures what it says and refuses what differs."""

import pytest
import torch

from bt_megatron.errors import ConversionError
from bt_megatron.inference.comparison import compare_logits, sample_tokens
from tests.golden import load_golden

LOGITS = torch.tensor([[[1.0, 2.0, -8.0], [0.0, 0.1, 0.2]]])


def test_equal_logits():
    comparison = compare_logits(LOGITS, LOGITS, LOGITS)
    comparison.require()
    assert (comparison.difference, comparison.rounding, comparison.agreement) == (0, 0, 1)
    assert (comparison.largest, comparison.predictions) == (8, 2)


def test_difference_is_refused_with_both_numbers():
    comparison = compare_logits(LOGITS + 0.01, LOGITS, LOGITS)
    with pytest.raises(ConversionError, match=r"by 0\.01, allowed are 0\.0008"):
        comparison.require()


def test_not_a_number_is_refused():
    with pytest.raises(ConversionError, match="by nan"):
        compare_logits(LOGITS * float("nan"), LOGITS, LOGITS).require()


def test_rounding_is_told_and_not_refused():
    original = LOGITS.flip(-1)
    comparison = compare_logits(LOGITS, LOGITS, original)
    comparison.require()
    assert comparison.rounding == 9
    assert comparison.agreement == 0.5  # the first row keeps its best token


@pytest.mark.parametrize("name", ["lookup_prefix_b4_p2", "vanilla_neox"])
def test_sample_is_whole_blocks_of_known_ids(name):
    model = load_golden(name).model
    tokens = sample_tokens(model)
    assert tokens.shape[1] % model.block_length == 0
    assert tokens.min() >= 0
    assert tokens.max() < model.vocab_size
    assert torch.equal(tokens, sample_tokens(model))
