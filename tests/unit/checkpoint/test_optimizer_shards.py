# SPDX-License-Identifier: Apache-2.0
"""Boxes of flat ranges: every element once, in order. Loading what is saved: tests/dist."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tests.ranks  # noqa: F401  imports Megatron for machines without CUDA
from bt_megatron.checkpoint.optimizer_shards import Box, boxes_of_range

shapes = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)


@st.composite
def ranges(draw):
    shape = draw(shapes)
    start = draw(st.integers(0, math.prod(shape)))
    return shape, start, draw(st.integers(start, math.prod(shape)))


@settings(deadline=None)
@given(ranges())
def test_boxes_hold_the_range_in_order(case):
    shape, start, stop = case
    elements = np.arange(math.prod(shape)).reshape(shape)

    boxes = list(boxes_of_range(shape, start, stop))
    found = [
        elements[tuple(slice(a, a + n) for a, n in zip(box.offset, box.shape, strict=True))]
        for box in boxes
    ]
    assert [x for part in found for x in part.ravel()] == list(range(start, stop))
    assert [part.size for part in found] == [box.size for box in boxes]
    assert len(boxes) <= 2 * len(shape) - 1


@pytest.mark.parametrize(
    ("start", "stop", "boxes"),
    [
        (0, 12, [Box((0, 0), (3, 4))]),
        (5, 7, [Box((1, 1), (1, 2))]),
        (3, 9, [Box((0, 3), (1, 1)), Box((1, 0), (1, 4)), Box((2, 0), (1, 1))]),
        (4, 4, []),
    ],
    ids=["whole", "inside of a row", "across rows", "nothing"],
)
def test_a_table_is_cut_into_rows(start, stop, boxes):
    assert list(boxes_of_range((3, 4), start, stop)) == boxes
