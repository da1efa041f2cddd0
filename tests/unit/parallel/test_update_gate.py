# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from bt_megatron.parallel.update_gate import UpdateGate

ONE = torch.tensor(1.0)


@pytest.mark.parametrize(
    ("loss", "norm", "closed"),
    [(1.0, 2.0, 0.0), (math.nan, 2.0, 1.0), (math.inf, 2.0, 1.0), (1.0, math.nan, 1.0)],
)
def test_closes_for_what_is_not_finite_and_opens_again(loss, norm, closed) -> None:
    gate = UpdateGate("cpu")
    gate.set(torch.tensor(loss), ONE, torch.tensor([norm]), clip_norm=1.0)
    assert gate.closed.tolist() == [closed]
    gate.set(ONE, ONE, ONE, clip_norm=1.0)
    assert gate.closed.tolist() == [0.0]


@pytest.mark.parametrize(("loss", "closed"), [(30.0, 0.0), (30.001, 1.0)])
def test_closes_for_a_mean_loss_above_the_limit(loss, closed) -> None:
    gate = UpdateGate("cpu")
    gate.max_loss.fill_(3.0)
    numbers = torch.tensor([loss, 10.0], dtype=torch.float64)
    gate.set(numbers[0], numbers[1], ONE, clip_norm=1.0)
    assert gate.closed.tolist() == [closed]


@pytest.mark.parametrize(
    ("norm", "targets", "clip", "divisor"),
    [
        (4.0, 1, 1.0, 4.000001),
        (40.0, 10, 1.0, 40.00001),
        (40.0, 10, 8.0, 10.0),
        (40.0, 10, 0.0, 10.0),
        (0.0, 0, 1.0, 1.0),
    ],
)
def test_gradients_are_divided_by_targets_and_by_what_exceeds_the_norm(
    norm, targets, clip, divisor
) -> None:
    gate = UpdateGate("cpu")
    numbers = torch.tensor([1.0, targets], dtype=torch.float64)
    mean_norm = gate.set(numbers[0], numbers[1], torch.tensor([norm]), clip_norm=clip)
    assert gate.divisor.item() == pytest.approx(divisor, rel=1e-6)
    assert gate.divisor.dtype == torch.float32
    assert mean_norm.item() == pytest.approx(norm / max(1, targets))
