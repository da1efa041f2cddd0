# SPDX-License-Identifier: Apache-2.0
"""The residual sum and its gradient against additions written out."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bt_megatron.kernels.residual import residual_sum

PARTS = {
    "two parts, two biases": (True, True, True),
    "two parts, first bias": (True, True, False),
    "two parts, second bias": (False, True, True),
    "two parts": (False, True, False),
    "one part, bias": (True, False, False),
    "one part": (False, False, False),
}


def operands(*present: bool) -> list[Tensor | None]:
    """Return hidden, first, first bias, second, second bias."""
    torch.manual_seed(0)
    first_bias, second, second_bias = present
    shapes = [(5, 2, 6), (5, 2, 6), first_bias and (6,), second and (5, 2, 6), second_bias and (6,)]
    return [
        torch.randn(shape, dtype=torch.float64, requires_grad=True) if shape else None
        for shape in shapes
    ]


def summed(
    hidden: Tensor,
    first: Tensor,
    first_bias: Tensor | None,
    second: Tensor | None,
    second_bias: Tensor | None,
) -> Tensor:
    part = None if second is None else (second, second_bias)
    return residual_sum(hidden, (first, first_bias), part)


@pytest.mark.parametrize("present", PARTS.values(), ids=PARTS.keys())
def test_sum_and_gradients_are_those_of_plain_additions(present: tuple[bool, ...]) -> None:
    inputs = operands(*present)
    there = [operand for operand in inputs if operand is not None]
    out = summed(*inputs)
    expected = sum(there)
    torch.testing.assert_close(out, expected, atol=1e-14, rtol=0)
    upstream = torch.randn_like(out)
    got = torch.autograd.grad(out, there, upstream)
    for gradient, wanted in zip(got, torch.autograd.grad(expected, there, upstream), strict=True):
        torch.testing.assert_close(gradient, wanted, atol=1e-14, rtol=0)


def test_gradients_are_asked_for_one_by_one() -> None:
    hidden, first, first_bias, second, second_bias = operands(True, True, True)
    out = residual_sum(hidden.detach(), (first, first_bias.detach()), (second, second_bias))
    assert {tensor.grad_fn is None for tensor in (hidden, first)} == {True}
    out.sum().backward()
    assert hidden.grad is None
    assert first_bias.grad is None
    assert torch.equal(second_bias.grad, torch.full((6,), 10.0, dtype=torch.float64))


INTERPRETED = """
import itertools
import torch
from bt_megatron.kernels.residual_triton import add_up

torch.manual_seed(0)
for width in (6, 1024, 1500):
    for first_bias, second, second_bias in itertools.product((False, True), repeat=3):
        if second_bias and not second:
            continue
        hidden, first = torch.randn(3, 2, width), torch.randn(3, 2, width)
        rest = [
            torch.randn(width) if first_bias else None,
            torch.randn(3, 2, width) if second else None,
            torch.randn(width) if second_bias else None,
        ]
        expected = sum((part for part in rest if part is not None), first.double()) + hidden
        got = add_up(hidden, first, *rest)
        torch.testing.assert_close(got, expected.float(), atol=1e-6, rtol=1e-6)
print("compared")
"""


def test_triton_kernel_in_its_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        cwd=Path(__file__).resolve().parents[3],
        env=dict(os.environ, TRITON_INTERPRET="1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "compared\n"
