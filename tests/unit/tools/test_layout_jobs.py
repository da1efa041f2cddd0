# SPDX-License-Identifier: Apache-2.0
"""The differences that layouts are judged by."""

import math

import pytest
import torch

from bt_megatron.errors import TrainingError
from tests.ranks import run_ranks  # noqa: F401  imports Megatron as it must be
from tools.layout_jobs import compare
from tools.layout_run import LayoutRun

EXPECTED = LayoutRun(losses=[8.0, 4.0], grad_norms=[2.0, 1.0], gradients={})
GRADIENTS = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([[0.5]]), "unused": torch.zeros(2)}


def run(losses=(8.0, 4.0), grad_norms=(2.0, 1.0)):
    return LayoutRun(losses=list(losses), grad_norms=list(grad_norms), gradients={})


def difference(*runs, **gradients):
    return compare(runs or [run()], GRADIENTS | gradients, EXPECTED, GRADIENTS)


def test_the_same_run_has_no_difference():
    same = difference()
    assert same.loss_nats == same.loss_relative == same.gradient == same.grad_norm_relative == 0


def test_losses_of_the_worst_step_and_rank_count():
    worst = difference(run(), run(losses=(8.0, 4.5)), run(losses=(7.25, 4.0)))
    assert worst.loss_nats == 0.75
    assert worst.loss_relative == 0.125


def test_gradient_norms_of_the_worst_step_count():
    assert difference(run(grad_norms=(2.0, 1.5))).grad_norm_relative == 0.5


def test_each_gradient_counts_by_its_own_norm():
    worst = difference(a=torch.tensor([3.0, 4.5]), b=torch.tensor([[0.6]]))
    assert worst.gradient == pytest.approx(0.2)
    assert worst.gradient_name == "b"


@pytest.mark.parametrize(
    "gradients",
    [{"unused": torch.tensor([0.0, 1e-9])}, {"a": torch.tensor([3.0, float("nan")])}],
    ids=["of what is not used", "nan"],
)
def test_what_cannot_be_compared_is_infinitely_far(gradients):
    worst = difference(**gradients)
    assert worst.gradient == math.inf
    assert worst.gradient_name == next(iter(gradients))


@pytest.mark.parametrize("losses", [(math.nan, 4.0), (8.0, math.nan)], ids=["first", "last"])
def test_a_loss_that_is_nan_is_infinitely_far(losses):
    assert difference(run(losses=losses)).loss_nats == math.inf


@pytest.mark.parametrize(
    ("gradients", "text"),
    [
        ({"a": GRADIENTS["a"], "b": GRADIENTS["b"]}, "no gradient of unused"),
        ({**GRADIENTS, "c": torch.zeros(1)}, "one process has no gradient of c"),
        ({**GRADIENTS, "b": torch.zeros(1)}, r"b: \(1,\) is not \(1, 1\)"),
    ],
    ids=["missing", "more", "shape"],
)
def test_other_gradients_are_an_error(gradients, text):
    with pytest.raises(TrainingError, match=text):
        compare([run()], gradients, EXPECTED, GRADIENTS)


def test_fewer_steps_are_an_error():
    with pytest.raises(ValueError, match="argument 2 is longer"):
        difference(run(losses=(8.0,)))
