# SPDX-License-Identifier: Apache-2.0
"""Triton kernels of the cross entropy: logits are read once forward, rewritten once backward.

Both are bound by memory traffic. A program owns a row, or a part of one, and sums in a
fixed order, so that every run gives the same bits. Letters of shapes: model/shapes.py.
"""

# ruff: noqa: ANN001, ANN201  (the compiler types the kernels' arguments)
import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096
"""Columns that a program holds at a time."""
WARPS = 8


@triton.jit
def statistics_kernel(
    logits, targets, statistics, columns, first, real: tl.constexpr, width: tl.constexpr
):
    """Write maximum, sum of exp(logit - maximum) and target logit of one row of a shard."""
    row = tl.program_id(0).to(tl.int64)  # row * columns can pass 2**31
    start = logits + row * columns
    lanes = tl.arange(0, width)
    maximum = tl.full((), float("-inf"), tl.float32)
    total = tl.full((), 0.0, tl.float32)
    for column in range(0, real, width):
        inside = column + lanes < columns  # aligned more often than `real`: wide loads
        x = tl.load(start + column + lanes, mask=inside, other=0.0).to(tl.float32)
        x = tl.where(column + lanes < real, x, float("-inf"))
        higher = tl.maximum(maximum, tl.max(x, axis=0))
        total = total * tl.exp(maximum - higher) + tl.sum(tl.exp(x - higher), axis=0)
        maximum = higher
    target = tl.load(targets + row) - first
    held = (target >= 0) & (target < real)
    chosen = tl.load(start + target, mask=held, other=float("-inf")).to(tl.float32)
    tl.store(statistics + 3 * row, maximum)
    tl.store(statistics + 3 * row + 1, total)
    tl.store(statistics + 3 * row + 2, chosen)


@triton.jit
def gradient_kernel(
    logits, targets, factors, columns, first, real: tl.constexpr, width: tl.constexpr
):
    """Turn a part of a row of logits into its gradient, (softmax - onehot) * upstream."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * width + tl.arange(0, width)
    inside = column < columns
    place = logits + row * columns + column
    maximum, log_sum = tl.load(factors + 3 * row), tl.load(factors + 3 * row + 1)
    upstream = tl.load(factors + 3 * row + 2)
    x = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    hit = column == tl.load(targets + row) - first
    gradient = (tl.exp(x - maximum - log_sum) - tl.where(hit, 1.0, 0.0)) * upstream
    gradient = tl.where(column < real, gradient, 0.0)
    tl.store(place, gradient.to(logits.dtype.element_ty), mask=inside)


def write_statistics(
    logits: Tensor, targets: Tensor, statistics: Tensor, *, first: int, real: int
) -> None:
    """Write each row's maximum, sum of exponentials and target logit.

    Args:
        logits: [rows, v/t] bf16 or fp32, contiguous.
        targets: [rows] int64 ids in the whole vocabulary.
        statistics: [rows, 3] fp32, contiguous, written; see `cross_entropy.row_statistics`.
        first: id of column 0.
        real: leading columns that are no padding.

    Comm: none.
    """
    _check(logits, targets, statistics)
    rows, columns = logits.shape
    statistics_kernel[(rows,)](
        logits, targets, statistics, columns, first, real, width=BLOCK, num_warps=WARPS
    )


def write_gradient(
    logits: Tensor, targets: Tensor, factors: Tensor, *, first: int, real: int
) -> None:
    """Overwrite logits with their gradient.

    Args:
        logits: [rows, v/t] bf16 or fp32, contiguous.
        targets: [rows] int64 ids in the whole vocabulary.
        factors: [rows, 3] fp32, contiguous: maximum, log of the sum of exponentials, upstream
            gradient, of the whole vocabulary.
        first: id of column 0.
        real: leading columns that are no padding.

    Comm: none.
    """
    _check(logits, targets, factors)
    rows, columns = logits.shape
    gradient_kernel[(rows, triton.cdiv(columns, BLOCK))](
        logits, targets, factors, columns, first, real, width=BLOCK, num_warps=WARPS
    )


def _check(logits: Tensor, targets: Tensor, per_row: Tensor) -> None:
    """Catch what the kernels, which see only addresses, would silently misread."""
    rows = logits.shape[0]
    assert logits.is_contiguous(), "the kernels walk rows of adjacent columns"
    assert targets.shape == (rows,), (targets.shape, rows)
    assert targets.is_contiguous(), "one id a row, adjacent"
    assert targets.dtype == torch.int64, targets.dtype
    assert per_row.shape == (rows, 3), (per_row.shape, rows)
    assert per_row.is_contiguous(), "three numbers a row, adjacent"
    assert per_row.dtype == torch.float32, per_row.dtype
