# SPDX-License-Identifier: Apache-2.0
"""A step whose batch may be left out: computed again first, in case the machine was at fault."""

from collections.abc import Sequence

from bt_megatron.checkpoint.state import random_state, set_random_state
from bt_megatron.data.batches import MicroBatch
from bt_megatron.training.run import Run
from bt_megatron.training.step import StepResult


def guarded_step(run: Run, batches: Sequence[MicroBatch], *, lr: float) -> StepResult:
    """Take the next step of a run, or leave its batch out.

    A loss or gradient that is not finite, or a spike, has not touched the weights. The step is
    computed a second time with the same random numbers: if it is good then, a machine has
    computed wrongly, and the run is the one it would have been. If not, the batch is left out.

    Raises:
        DivergenceError: too many batches were left out.

    Comm: that of one or two steps; must be called by all ranks.
    """
    number = run.step + 1
    before = random_state()
    result = _compute(run, batches, lr)
    if not result.is_applied:
        suspect = result.totals.loss
        set_random_state(before)
        result = _compute(run, batches, lr)
        if result.is_applied and run.reporter is not None:
            why = f"the loss was {suspect:.4f}, and {result.totals.loss:.4f} when computed again"
            run.reporter.batch("recomputed", step=number, loss=suspect, why=why)
    if result.is_applied:
        run.guard.use(result.totals.loss)
        return result
    loss, grad_norm = result.totals.loss, result.grad_norm
    why = run.guard.leave_out(number, loss=loss, grad_norm=grad_norm)
    if run.reporter is not None:
        run.reporter.batch("skipped", step=number, loss=loss, grad_norm=grad_norm, why=why)
    return result


def _compute(run: Run, batches: Sequence[MicroBatch], lr: float) -> StepResult:
    return run.training.train(
        batches, lr=lr, max_loss=run.guard.limit, stop_requested=run.stop.is_set
    )
