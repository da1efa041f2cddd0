# SPDX-License-Identifier: Apache-2.0
"""Times of calls on a GPU, and the bandwidth of a copy to hold them against.

Each time is the median over repetitions of a series of calls between two CUDA events. Before each
series 2 GiB are read, which empties the L2 cache and lets the host get ahead.
"""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

COPY_BYTES = 2 * 2**30


class Clock:
    """Measures calls on the GPU."""

    def __init__(self, repetitions: int) -> None:
        """Measure with so many repetitions of each series."""
        self.repetitions = repetitions
        self._flush = torch.zeros(COPY_BYTES, dtype=torch.int8, device="cuda").view(torch.int64)

    def seconds(self, calls: Sequence[Callable[[], Any]]) -> float:
        """Return the median time of a call, after a warm-up that compiles."""
        for call in calls:
            call()
        series = [call for _ in range(-(-8 // len(calls))) for call in calls]
        times = []
        for _ in range(self.repetitions):
            self._flush.amax()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for call in series:
                call()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end) / 1000 / len(series))
        return statistics.median(times)

    def copy_bandwidth(self) -> float:
        """Return bytes read and written per second by a large copy."""
        source, target = (torch.empty_like(self._flush) for _ in range(2))
        return 2 * COPY_BYTES / self.seconds([lambda: target.copy_(source)])
