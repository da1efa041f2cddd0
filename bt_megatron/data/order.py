# SPDX-License-Identifier: Apache-2.0
"""Which sample is read at which position of training.

Positions count the samples a run has read, 0, 1, 2, ... over all processes.
The order is a pure function of (position, number of samples, seed, dataset
fingerprint), so a run resumes in O(1), without skipping or replaying and on
any number of processes. Every epoch is a new permutation of all samples, made
without storing it: a Feistel network over the next power of two, walked until
it lands on a sample (Black and Rogaway, "Ciphers with Arbitrary Finite
Domains", CT-RSA 2002). Memory is O(1) for any corpus.
"""

import functools
import hashlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bt_megatron.data.hash64 import mix64

_ROUNDS = 8
_FEWEST_BITS = 4  # two bits a half: below that the rounds cannot mix


def sample_of_position(
    position: ArrayLike, *, num_samples: int, seed: int, fingerprint: str
) -> NDArray[np.int64]:
    """Map positions of training to samples of the dataset.

    Args:
        position: one position or an array of them; epoch = position // num_samples.
        num_samples: samples of the dataset.
        seed: seed of the order (data.seed).
        fingerprint: what the dataset is; another dataset has another order.

    Returns:
        Sample indices in [0, num_samples), in the shape of `position`. Over
        the positions of one epoch each sample comes exactly once.
    """
    positions = np.asarray(position, dtype=np.int64)
    assert num_samples > 0, "a dataset without samples is refused before it is ordered"
    assert positions.size == 0 or positions.min() >= 0, "positions count from 0"
    epochs, places = np.divmod(positions.reshape(-1), num_samples)
    samples = np.empty_like(places)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        keys = _round_keys(seed, int(epoch), fingerprint)
        samples[chosen] = _permute(places[chosen], num_samples=num_samples, keys=keys)
    return samples.reshape(positions.shape)


@functools.lru_cache(maxsize=64)
def _round_keys(seed: int, epoch: int, fingerprint: str) -> tuple[np.uint64, ...]:
    text = f"bt-megatron sample order 1/{seed}/{epoch}/{fingerprint}"
    digest = hashlib.blake2b(text.encode(), digest_size=8 * _ROUNDS).digest()
    return tuple(np.frombuffer(digest, dtype="<u8").astype(np.uint64))


def _permute(
    places: NDArray[np.int64], *, num_samples: int, keys: tuple[np.uint64, ...]
) -> NDArray[np.int64]:
    """Apply the Feistel permutation again to whatever lands outside of the samples.

    The power of two is below twice the number of samples (from 16 on), so a
    place needs fewer than two turns on average.
    """
    bits = max(_FEWEST_BITS, (num_samples - 1).bit_length())
    values = _feistel(places.astype(np.uint64), bits=bits, keys=keys)
    outside = np.flatnonzero(values >= num_samples)
    while outside.size:
        values[outside] = _feistel(values[outside], bits=bits, keys=keys)
        outside = outside[values[outside] >= num_samples]
    return values.astype(np.int64)


def _feistel(
    values: NDArray[np.uint64], *, bits: int, keys: tuple[np.uint64, ...]
) -> NDArray[np.uint64]:
    """Permute [0, 2**bits): each half in turn is xored with a hash of the other."""
    low_bits = np.uint64(bits // 2)
    low_mask = np.uint64((1 << (bits // 2)) - 1)
    high_mask = np.uint64((1 << (bits - bits // 2)) - 1)
    low, high = values & low_mask, values >> low_bits
    for high_key, low_key in zip(keys[::2], keys[1::2], strict=True):
        high = high ^ (mix64(low ^ high_key) & high_mask)
        low = low ^ (mix64(high ^ low_key) & low_mask)
    return (high << low_bits) | low
