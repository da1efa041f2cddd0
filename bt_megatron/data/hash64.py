# SPDX-License-Identifier: Apache-2.0
"""SplitMix64: 64-bit pseudo-random numbers that can be asked for by index.

Source: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number
Generators", OOPSLA 2014; the constants are those of Vigna's public-domain
splitmix64.c. Integer arithmetic only: the same numbers on every machine.
"""

import numpy as np
from numpy.typing import NDArray

_GAMMA = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio, made odd
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def mix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit values with SplitMix64's finalizer, a bijection.

    Args:
        values: uint64 of any shape with at least one axis.

    Returns:
        uint64 of the same shape.
    """
    mixed = (values ^ (values >> np.uint64(30))) * _MULTIPLIERS[0]
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _MULTIPLIERS[1]
    return mixed ^ (mixed >> np.uint64(31))


def random64(index: NDArray[np.uint64], *, seed: int) -> NDArray[np.uint64]:
    """Return the outputs of SplitMix64(seed) at the given indices.

    Args:
        index: uint64 of any shape with at least one axis; 0 is the first output.
        seed: start of the generator; only its low 64 bits count.

    Returns:
        uint64 of the same shape.
    """
    state = (index + np.uint64(1)) * _GAMMA + np.uint64(seed % 2**64)
    return mix64(state)
