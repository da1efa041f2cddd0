# SPDX-License-Identifier: Apache-2.0
"""Batches that are left out: loss or gradient is not finite, or the loss a spike.

A step whose batch is left out counts, and leaves weights and optimizer state as they are. So which
samples a step reads stays a function of the step alone. What decides is the losses of the steps
before; they are part of a checkpoint, so that a resumed run leaves out what the undisturbed one
does.
"""

import math
import statistics
from collections import deque
from collections.abc import Sequence
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

    def __init__(self, faults: FaultConfig, state: GuardState | None = None) -> None:
        """Go on from what a checkpoint knew.

        Args:
            faults: how large a spike is, and how many batches may be left out.
            state: of the checkpoint.
        """
        state = state or GuardState()
        self._faults = faults
        self._losses = deque(state.losses, maxlen=WINDOW)
        self._skipped = list(state.skipped)
        self.skipped_here = 0

    @property
    def state(self) -> GuardState:
        """What a checkpoint must hold."""
        return GuardState(tuple(self._losses), tuple(self._skipped))

    @property
    def limit(self) -> float:
        """The largest loss at which the next batch is used; a NaN never is."""
        factor = self._faults.spike_factor
        if not factor or len(self._losses) < LEAST:
            return math.inf
        return factor * statistics.median(self._losses)

    def use(self, loss: float) -> None:
        """Note the loss of a step whose batch was used."""
        self._losses.append(loss)

    def leave_out(self, step: int, *, loss: float, grad_norm: float) -> str:
        """Note that the batch of a step, from 1, was left out.

        Args:
            step: the step.
            loss: what it gave.
            grad_norm: likewise.

        Returns:
            Why.

        Raises:
            DivergenceError: it is one too many.
        """
        self.skipped_here += 1
        self._skipped = [old for old in self._skipped if old > step - REMEMBERED_STEPS] + [step]
        why = f"the loss is {loss:.4f} and the gradient norm {grad_norm:.4f}, computed twice"
        if math.isfinite(loss) and math.isfinite(grad_norm):
            why += f"; the limit is {self.limit:.4f} (faults.spike_factor)"
        allowed = self._faults.max_skipped_batches
        if len(self._skipped) > allowed:
            raise DivergenceError(
                f"step {step}: {why}. {len(self._skipped)} batches of the last {REMEMBERED_STEPS} "
                f"steps were left out, faults.max_skipped_batches is {allowed}: the run diverges. "
                "Start it again under another name with a lower optimizer.lr or another data.seed, "
                "or allow more."
            )
        return why
