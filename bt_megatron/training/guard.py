# SPDX-License-Identifier: Apache-2.0
"""Batches that are left out: a loss that is not finite or a spike, a gradient that is not finite.

A step whose batch is left out counts, and leaves weights and optimizer state as they are. So which
samples a step reads stays a function of the step alone. What decides is the losses of the steps
before; they are part of a checkpoint, so that a resumed run leaves out what the undisturbed one
does.
"""

import math
import statistics
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bt_megatron.config.schema import FaultConfig
from bt_megatron.errors import DivergenceError

WINDOW = 64
"""Losses whose median a spike is compared with."""

LEAST = 16
"""Losses that must be known before a finite one can be a spike."""

REMEMBERED_STEPS = 1000
"""Steps within which `faults.max_skipped_batches` may be left out."""


@dataclass(frozen=True, slots=True)
class GuardState:
    """What the guard knows after a step; part of the manifest."""

    losses: Sequence[float] = ()
    """Of the newest steps whose batches were used, oldest first."""
    skipped: Sequence[int] = ()
    """Newest steps that were left out, from 1."""


class BatchGuard:
    """Decides on the batch of each step. Every rank has one, and all see the same losses.

    Attributes:
        skipped_here: batches left out since this process started.
    """

    def __init__(
        self, faults: FaultConfig, state: GuardState | None = None, condemned: Iterable[int] = ()
    ) -> None:
        """Go on from what a checkpoint knew.

        Args:
            faults: how large a spike is, and how many batches may be left out.
            state: of the checkpoint.
            condemned: steps, from 1, to be left out whatever their loss is: an earlier attempt
                found that their gradient is not finite.
        """
        state = state or GuardState()
        self._faults = faults
        self._losses = deque(state.losses, maxlen=WINDOW)
        self._skipped = list(state.skipped)
        self._condemned = frozenset(condemned)
        self.skipped_here = 0

    @property
    def state(self) -> GuardState:
        """What a checkpoint must hold."""
        return GuardState(tuple(self._losses), tuple(self._skipped))

    def is_condemned(self, step: int) -> bool:
        """Whether a step, from 1, is left out whatever its loss is."""
        return step in self._condemned

    def limit(self, step: int) -> float:
        """Return the largest loss at which the batch of a step is used; a NaN never is."""
        if self.is_condemned(step):
            return -math.inf
        factor = self._faults.spike_factor
        if not factor or len(self._losses) < LEAST:
            return math.inf
        return factor * statistics.median(self._losses)

    def use(self, loss: float) -> None:
        """Note the loss of a step whose batch was used."""
        self._losses.append(loss)

    def leave_out(self, step: int, loss: float) -> str:
        """Note that the batch of a step, from 1, was left out.

        Returns:
            Why.

        Raises:
            DivergenceError: it is one too many.
        """
        limit = self.limit(step)
        self.skipped_here += 1
        self._skipped = [old for old in self._skipped if old > step - REMEMBERED_STEPS] + [step]
        if self.is_condemned(step):
            why = "its gradient was not finite in an earlier attempt"
        elif not math.isfinite(loss):
            why = f"the loss is {loss}, twice"
        else:
            why = f"the loss is {loss:.4f}, above {limit:.4f} (faults.spike_factor)"
        allowed = self._faults.max_skipped_batches
        if len(self._skipped) > allowed:
            raise DivergenceError(
                f"step {step}: {why}. {len(self._skipped)} batches of the last {REMEMBERED_STEPS} "
                f"steps were left out, faults.max_skipped_batches is {allowed}: the run diverges. "
                "Start it again under another name with a lower optimizer.lr or another data.seed, "
                "or allow more."
            )
        return why
