# SPDX-License-Identifier: Apache-2.0
"""From which of several sources, and where in it, each position of training comes.

A source i gives its samples 0, 1, 2, ... at a constant rate until a limit; the
others go on at theirs, so they share what it had. Time runs in whole ticks: by
tick T source i has given

    count_i(T) = min(limit_i, floor(rate_i * T / 2**31 + 1/2))

samples, with rate_i = weight_i * 2**31 rounded to a whole number. Ticks in
which several give one put them in the order of the sources. This is a merge of
evenly spaced events (a Beatty sequence a source): after any number of positions
each source is within a few samples of its share, in every step alike. All
arithmetic is on whole numbers, the same on every machine, and a position is
found by bisection: nothing is stored, nothing replayed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SMALLEST_SHARE = 1e-6
"""Of the tokens; a smaller one would be rounded by more than 0.03 %."""

_SCALE = 1 << 31
_LAST_TICK = 1 << 61
UNLIMITED = 1 << 60


@dataclass(frozen=True, slots=True)
class Located:
    """Where positions come from."""

    source: NDArray[np.int64]
    """[...] index of the source."""
    place: NDArray[np.int64]
    """[...] how many samples the source has given before."""


class Interleaving:
    """The order in which several sources are read."""

    def __init__(self, weights: Sequence[float], limits: Sequence[int | None]) -> None:
        """Set rates and limits.

        Args:
            weights: share of each source in what is read, relative to the others; the share
                must not be below `SMALLEST_SHARE`.
            limits: samples that each source gives at most; none: no limit.
        """
        total = sum(weights)
        assert min(weights) >= SMALLEST_SHARE * total, "refused before, with the name of the source"
        self.rates = np.array([round(w / total * _SCALE) for w in weights], dtype=np.int64)  # [d]
        self.limits = np.array([UNLIMITED if n is None else n for n in limits], dtype=np.int64)

    @property
    def capacity(self) -> int | None:
        """Positions before every source has reached its limit; None if one has no limit."""
        if (self.limits == UNLIMITED).any():
            return None
        return int(self.limits.sum())

    def locate(self, positions: NDArray[np.int64]) -> Located:
        """Find where positions come from.

        Args:
            positions: [...] from 0, below `capacity`.

        Returns:
            Source and place of each, [...].
        """
        if positions.size == 0 or len(self.rates) == 1:  # place is position
            return Located(np.zeros_like(positions), positions.copy())
        flat = positions.reshape(-1)
        ticks = self._ticks(flat)  # [positions]
        before = self._counts(ticks)  # [d, positions]
        gives = self._counts(ticks + 1) - before  # 0 or 1
        rank = flat - before.sum(axis=0)
        source = (np.cumsum(gives, axis=0) <= rank).sum(axis=0)
        place = np.take_along_axis(before, source[None], axis=0)[0]
        return Located(source.reshape(positions.shape), place.reshape(positions.shape))

    def counts(self, position: int) -> NDArray[np.int64]:
        """Return [d] how many samples each source has given in positions [0, position)."""
        if position == 0:
            return np.zeros_like(self.rates)
        last = self.locate(np.array([position - 1]))
        tick = self._ticks(np.array([position - 1]))
        before = self._counts(tick)[:, 0]
        gives = self._counts(tick + 1)[:, 0] - before
        return before + gives * (np.arange(len(gives)) <= last.source[0])

    def exhausted_at(self, source: int) -> int | None:
        """Return the positions after which a source has given all that it may; None if never."""
        limit = int(self.limits[source])
        if limit == UNLIMITED:
            return None
        low, high = 0, _LAST_TICK
        while low < high:  # the first tick by which it has given all
            middle = (low + high) // 2
            if self._counts(np.array([middle]))[source, 0] >= limit:
                high = middle
            else:
                low = middle + 1
        return int(self._counts(np.array([low])).sum())

    def _counts(self, ticks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return [d, ticks] samples given by each tick, without overflow on the way."""
        whole, part = np.divmod(ticks, _SCALE)
        rates = self.rates[:, None]
        given = rates * whole + (rates * part + _SCALE // 2) // _SCALE
        return np.minimum(given, self.limits[:, None])

    def _ticks(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return for each position the last tick by which no more than it have been given."""
        assert int(positions.min()) >= 0, "positions count from 0"
        capacity = self.capacity
        assert capacity is None or int(positions.max()) < capacity, "asked for beyond the limits"
        ends = np.array([positions.min(), positions.max()])
        low, high = self._bisect(ends, np.zeros(2, np.int64), np.full(2, _LAST_TICK))
        return self._bisect(positions, np.full_like(positions, low), np.full_like(positions, high))

    def _bisect(
        self, positions: NDArray[np.int64], low: NDArray[np.int64], high: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Narrow ticks in [low, high] down to the last with counts <= position."""
        while (low < high).any():
            middle = low + (high - low + 1) // 2
            fits = self._counts(middle).sum(axis=0) <= positions
            low = np.where(fits, middle, low)
            high = np.where(fits, high, middle - 1)
        return low
