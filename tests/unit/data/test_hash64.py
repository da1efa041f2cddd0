# SPDX-License-Identifier: Apache-2.0
"""SplitMix64 gives the published numbers."""

import numpy as np
import pytest

from bt_megatron.data.hash64 import mix64, random64


@pytest.mark.parametrize(
    ("seed", "expected"),
    [
        (0, [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]),
        (1234567, [6457827717110365317, 3203168211198807973, 9817491932198370423]),
    ],
)
def test_first_outputs_are_those_of_the_generator(seed, expected):
    assert random64(np.arange(3, dtype=np.uint64), seed=seed).tolist() == expected


def test_finalizer_is_a_bijection_where_it_can_be_counted():
    values = np.arange(1 << 16, dtype=np.uint64) << np.uint64(48)
    assert len(np.unique(mix64(values))) == len(values)


def test_negative_and_large_seeds_count_modulo_64_bits():
    index = np.arange(4, dtype=np.uint64)
    assert np.array_equal(random64(index, seed=-1), random64(index, seed=2**64 - 1))
    assert not np.array_equal(random64(index, seed=-1), random64(index, seed=1))
