# SPDX-License-Identifier: Apache-2.0
import math
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bt_megatron.config.schema import FaultConfig
from bt_megatron.errors import DivergenceError
from bt_megatron.training.guard import LEAST, REMEMBERED_STEPS, WINDOW, BatchGuard, GuardState

LOSSES = st.lists(st.floats(0.1, 20), min_size=0, max_size=3 * WINDOW)


def guard_after(losses, **faults):
    guard = BatchGuard(FaultConfig(**faults))
    for loss in losses:
        guard.use(loss)
    return guard


def test_a_finite_loss_is_no_spike_until_enough_are_known():
    guard = guard_after([1.0] * (LEAST - 1))
    assert guard.limit == math.inf

    guard.use(1.0)
    assert guard.limit == 2.0


def test_the_median_moves_with_the_losses():
    guard = guard_after([8.0] * WINDOW + [3.0] * WINDOW, spike_factor=1.5)
    assert guard.limit == 4.5


def test_spikes_can_be_allowed():
    assert guard_after([1.0] * WINDOW, spike_factor=0).limit == math.inf


def test_why_a_batch_is_left_out_is_said():
    guard = guard_after([2.0] * LEAST)
    spike = guard.leave_out(17, loss=9.0, grad_norm=3.0)
    assert spike.startswith("the loss is 9.0000 and the gradient norm 3.0000, computed twice; ")
    assert "the limit is 4.0000 (faults.spike_factor)" in spike
    lost = guard.leave_out(18, loss=2.0, grad_norm=math.nan)
    assert lost == "the loss is 2.0000 and the gradient norm nan, computed twice"
    assert guard.skipped_here == 2


def test_too_many_are_a_divergence():
    guard = guard_after([2.0] * LEAST, max_skipped_batches=2)
    guard.leave_out(20, loss=9.0, grad_norm=1.0)
    guard.leave_out(21, loss=9.0, grad_norm=1.0)
    with pytest.raises(DivergenceError, match=r"step 22: .*3 batches .*max_skipped_batches is 2"):
        guard.leave_out(22, loss=9.0, grad_norm=1.0)


def test_those_of_long_ago_are_forgotten():
    guard = guard_after([2.0] * LEAST, max_skipped_batches=1)
    guard.leave_out(20, loss=9.0, grad_norm=1.0)
    guard.leave_out(20 + REMEMBERED_STEPS, loss=9.0, grad_norm=1.0)
    assert guard.state.skipped == (20 + REMEMBERED_STEPS,)


@given(LOSSES, LOSSES)
def test_a_guard_that_is_resumed_decides_as_the_one_that_was_not(before, after):
    undisturbed = guard_after([*before, *after])
    saved = GuardState(**asdict(guard_after(before).state))
    resumed = BatchGuard(FaultConfig(), saved)
    for loss in after:
        resumed.use(loss)

    assert resumed.limit == undisturbed.limit
    assert resumed.state == undisturbed.state
