# SPDX-License-Identifier: Apache-2.0
"""Each transform is exact, and split and join undo each other."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bt_megatron.checkpoint.transforms import POINT_CONV, SAME, BlockConv, FusedHeads

sizes = st.integers(1, 4)


@pytest.mark.parametrize("transform", [SAME, POINT_CONV, BlockConv(3), FusedHeads(4, 3)], ids=repr)
def test_round_trip(transform):
    canonical = torch.randn(24, 12)
    parts = transform.split(canonical)
    assert [tuple(part.shape) for part in parts] == transform.shapes((24, 12))
    assert torch.equal(transform.join(parts), canonical)


@given(width=sizes, vector=sizes, taps=sizes)
def test_block_conv_is_a_linear_map_over_the_concatenation(width, vector, taps):
    linear = torch.randn(width, taps * vector, dtype=torch.float64)
    (conv,) = BlockConv(taps).split(linear)
    tokens = torch.randn(5, taps, vector, dtype=torch.float64)
    by_conv = torch.nn.functional.conv1d(tokens.transpose(1, 2), conv)[..., 0]
    torch.testing.assert_close(tokens.flatten(1) @ linear.T, by_conv)


@given(heads=sizes, head_width=sizes, parts=st.integers(2, 3), columns=sizes)
def test_fused_heads_are_grouped_head_by_head(heads, head_width, parts, columns):
    separate = [torch.randn(heads * head_width, columns) for _ in range(parts)]
    fused = FusedHeads(heads, parts).join(separate)
    for head in range(heads):
        for part in range(parts):
            first = (head * parts + part) * head_width
            rows = slice(head * head_width, (head + 1) * head_width)
            assert torch.equal(fused[first : first + head_width], separate[part][rows])


@given(heads=sizes, head_width=sizes)
def test_fused_biases(heads, head_width):
    biases = [torch.randn(heads * head_width) for _ in range(3)]
    transform = FusedHeads(heads, 3)
    parts = transform.split(transform.join(biases))
    assert all(torch.equal(a, b) for a, b in zip(parts, biases, strict=True))
