# SPDX-License-Identifier: Apache-2.0
"""The sample order: a permutation an epoch, pinned, and without visible order."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bt_megatron.data.order import sample_of_position

DATA = "0123abcd"


def _order(positions, num_samples, *, seed=42, fingerprint=DATA):
    return sample_of_position(
        positions, num_samples=num_samples, seed=seed, fingerprint=fingerprint
    )


def _epoch(num_samples, epoch=0, **kwargs):
    start = epoch * num_samples
    return _order(np.arange(start, start + num_samples), num_samples, **kwargs)


def test_every_small_size_is_a_permutation_in_every_epoch():
    for num_samples in range(1, 2001):
        epochs = _order(np.arange(3 * num_samples), num_samples).reshape(3, num_samples)
        assert np.array_equal(
            np.sort(epochs, axis=1), np.broadcast_to(np.arange(num_samples), epochs.shape)
        ), num_samples


@given(bits=st.integers(11, 17), offset=st.integers(-2, 2), epoch=st.integers(0, 10**6))
def test_sizes_around_powers_of_two_are_permutations(bits, offset, epoch):
    num_samples = (1 << bits) + offset
    assert np.array_equal(np.sort(_epoch(num_samples, epoch)), np.arange(num_samples))


@given(num_samples=st.integers(1, 10**11), start=st.integers(0, 10**13))
def test_position_alone_gives_what_an_array_of_positions_gives(num_samples, start):
    many = _order(np.arange(start, start + 40), num_samples)
    assert many.min() >= 0
    assert many.max() < num_samples
    assert [int(_order(start + i, num_samples)) for i in (0, 1, 39)] == many[[0, 1, 39]].tolist()


def test_shape_of_positions_is_kept():
    grid = np.arange(24).reshape(2, 3, 4)
    assert np.array_equal(_order(grid, 10).reshape(-1), _order(np.arange(24), 10))
    assert _order(grid, 10).shape == grid.shape
    assert _order(5, 10).shape == ()
    assert _order([], 10).shape == (0,)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"seed": 43}, id="seed"),
        pytest.param({"fingerprint": "0123abce"}, id="fingerprint"),
        pytest.param({"epoch": 1}, id="epoch"),
    ],
)
def test_order_depends_on(other):
    """Two random permutations agree in about one place (Poisson with mean 1)."""
    assert np.count_nonzero(_epoch(5_000) == _epoch(5_000, **other)) < 10


@pytest.mark.parametrize("num_samples", [4_096, 5_000, 8_191, 100_003])
def test_order_is_not_correlated_with_position_neighbour_or_epoch(num_samples):
    order = _epoch(num_samples).astype(np.float64)
    limit = 4 / math.sqrt(num_samples)
    pairs = {
        "position": (np.arange(num_samples), order),
        "next": (order[:-1], order[1:]),
        "after next": (order[:-2], order[2:]),
        "next epoch": (order, _epoch(num_samples, 1)),
        "lowest bits": (order[:-1] % 2, order[1:] % 2),
    }
    for name, (left, right) in pairs.items():
        assert abs(np.corrcoef(left, right)[0, 1]) < limit, name


def test_samples_spread_evenly_over_the_epoch():
    """Chi-square of position by sample in a 16 x 16 table: 225 degrees of freedom."""
    num_samples = 1 << 16
    table, _, _ = np.histogram2d(np.arange(num_samples), _epoch(num_samples), bins=16)
    expected = num_samples / 256
    assert 150 < ((table - expected) ** 2 / expected).sum() < 310


def test_all_permutations_of_few_samples_are_equally_likely():
    """Chi-square over the 24 orders of four samples: 23 degrees of freedom."""
    epochs = 24 * 50
    orders = _order(np.arange(4 * epochs), 4).reshape(epochs, 4)
    counts = dict.fromkeys(itertools.permutations(range(4)), 0)
    for order in orders.tolist():
        counts[tuple(order)] += 1
    assert sum((count - 50) ** 2 / 50 for count in counts.values()) < 50


def test_order_is_pinned():
    """A change here changes the order of every existing run when it resumes."""
    assert _epoch(12).tolist() == PINNED_12
    assert _epoch(12, 1).tolist() == PINNED_12_NEXT
    large = _order(np.arange(6) + 10**12, 101_000_000, seed=7, fingerprint="f" * 64)
    assert large.tolist() == PINNED_LARGE


def test_position_before_the_start_is_our_own_mistake():
    with pytest.raises(AssertionError):
        _order(-1, 10)


PINNED_12 = [3, 10, 0, 5, 6, 7, 11, 4, 9, 8, 2, 1]
PINNED_12_NEXT = [8, 2, 6, 7, 11, 5, 3, 1, 10, 0, 9, 4]
PINNED_LARGE = [8875878, 77827538, 78939778, 31070543, 37311403, 91594524]
