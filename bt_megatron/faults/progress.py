# SPDX-License-Identifier: Apache-2.0
"""What this rank is doing, for how long, and how long it may take."""

import statistics
import time
from collections import defaultdict, deque
from collections.abc import Callable

from bt_megatron.config.schema import FaultConfig
from bt_megatron.faults.verdict import Place
from bt_megatron.parallel.collectives import Recorder

PATIENT = frozenset({"start", "checkpoint", "end"})
"""Phases whose length depends on storage and on how much there is to write."""

REMEMBERED = 20
"""Passes of a phase whose median counts."""

TIMES_MEDIAN = 3
"""A pass that takes this many times the median without progress is stalled."""


class Progress:
    """The phase of this rank. The main thread enters phases, the watch thread looks."""

    def __init__(
        self,
        faults: FaultConfig,
        recorder: Recorder,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with the phase `start`."""
        self._faults, self._recorder, self._clock = faults, recorder, clock
        self._durations: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=REMEMBERED))
        self._phase = ("start", 0, clock(), self._limit_s("start"))

    def enter(self, phase: str, step: int) -> None:
        """Enter a phase; what is learned about the one before is how long it took."""
        now = self._clock()
        before, _, since, _ = self._phase
        self._durations[before].append(now - since)
        self._phase = (phase, step, now, self._limit_s(phase))

    def place(self, *, not_before: float = 0.0) -> Place:
        """Return where this rank is.

        Args:
            not_before: times are counted from here at the earliest, because before that
                this process was suspended.
        """
        phase, step, since, limit_s = self._phase
        last, inside = self._recorder.last, bool(self._recorder.inside)
        name, ranks, entered = last or (None, "", since)
        now = self._clock()
        return Place(
            phase=phase,
            step=step,
            phase_s=now - since,
            stalled_s=now - max(since, entered, not_before),
            limit_s=limit_s,
            collective=name,
            ranks=ranks,
            collective_s=now - entered,
            inside=inside,
            counts=dict(self._recorder.counts),
        )

    def _limit_s(self, phase: str) -> float:
        """Return how long a phase may go without progress."""
        known = self._durations.get(phase)
        if phase in PATIENT or not known:
            return self._faults.slow_phase_seconds
        return max(self._faults.hung_rank_seconds, TIMES_MEDIAN * statistics.median(known))
