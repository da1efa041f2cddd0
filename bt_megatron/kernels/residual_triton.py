# SPDX-License-Identifier: Apache-2.0
"""Triton kernel of the residual sum: every operand is read once, the sum written once."""

# ruff: noqa: ANN001, ANN201  (the compiler types the kernel's arguments)
import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_BLOCK = 1024
"""Columns that a program adds up at most."""


@triton.jit
def residual_sum_kernel(
    hidden, first, first_bias, second, second_bias, out, width, block: tl.constexpr
):
    """Add up part of one row in float32; operands that are None are left out."""
    row = tl.program_id(0).to(tl.int64)  # rows * width passes 2**31
    column = tl.program_id(1) * block + tl.arange(0, block)
    inside = column < width
    place = row * width + column
    total = tl.load(first + place, mask=inside).to(tl.float32)
    if first_bias is not None:
        total += tl.load(first_bias + column, mask=inside).to(tl.float32)
    if second is not None:
        total += tl.load(second + place, mask=inside).to(tl.float32)
    if second_bias is not None:
        total += tl.load(second_bias + column, mask=inside).to(tl.float32)
    total += tl.load(hidden + place, mask=inside).to(tl.float32)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=inside)


def add_up(
    hidden: Tensor,
    first: Tensor,
    first_bias: Tensor | None,
    second: Tensor | None,
    second_bias: Tensor | None,
) -> Tensor:
    """Return hidden + first + first_bias + second + second_bias, rounded once.

    Args:
        hidden: [..., h].
        first: like hidden.
        first_bias: [h].
        second: like hidden.
        second_bias: [h].

    Returns:
        [..., h], contiguous.

    Comm: none.
    """
    hidden, first = hidden.contiguous(), first.contiguous()
    second = None if second is None else second.contiguous()
    out = torch.empty_like(hidden)
    width = hidden.shape[-1]
    block = min(MAX_BLOCK, triton.next_power_of_2(width))
    grid = (hidden.numel() // width, triton.cdiv(width, block))
    residual_sum_kernel[grid](hidden, first, first_bias, second, second_bias, out, width, block)
    return out
