# SPDX-License-Identifier: Apache-2.0
"""Triton kernels of two norms of the same rows: each direction is one pass over memory.

A program owns every n-th row and keeps the norms' weights, and backward the sums of their
gradients, in registers. The sums are written once a program and added up in the order of the
programs, so that every run gives the same bits. Statistics and sums are float32.

    forward    x -> y = z * w + b twice, z = (x - mean) * scale
    backward   g = w_1 * dy_1 + w_2 * dy_2
               dx = dr + scale * (g - avg(g) - z * avg(g * z))
               dw = sum over rows of dy * z, db = sum over rows of dy

with scale = (avg((x - mean)^2) + eps)^-1/2 and dr the gradient that x gets on other ways. Without
biases it is RMSNorm: mean and avg(g) are left out.
"""

# ruff: noqa: ANN001, ANN201, ANN202  (the compiler types the kernels' arguments)
import torch
import triton
import triton.language as tl
from torch import Tensor

Affine = tuple[Tensor, Tensor | None]
"""Weight and bias of a norm, [h] each; without bias it is RMSNorm."""

MAX_WIDTH = 8192
"""Columns of a row at most; more do not fit a program's registers."""
VALUES_PER_WARP = 256
"""Columns that a warp holds: 8 a thread, which are the 16 bytes of one access in bf16."""
MAX_WARPS = 16
RESIDENT_WARPS = 132 * 16
"""Warps that work at a time: 16 on each of the 132 multiprocessors of an H100.

A constant, and not what the GPU at hand has, so that sums have the same order on all.
"""

STAGES = tl.constexpr(3)
"""Rows that a program has at hand: two are on their way while one is computed with."""
LARGEST_ON_THEIR_WAY = tl.constexpr(98304)
"""Bits of a row for that: two rows of four tensors are 96 KiB of shared memory, less than an A100
(164 KiB) or H100 has. Larger rows are loaded when they are needed."""


@triton.jit
def _load(start, column, inside):
    return tl.load(start + column, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _store(start, column, inside, value):
    tl.store(start + column, value.to(start.dtype.element_ty), mask=inside)


@triton.jit
def forward_kernel(hidden, first, second, outs, statistics, size, eps, block: tl.constexpr):
    """Normalise every n-th row and write it with both weights; statistics are [2, rows]."""
    rows, width = size
    column = tl.arange(0, block)
    inside = column < width
    row_bits: tl.constexpr = block * hidden.dtype.element_ty.primitive_bitwidth
    stages: tl.constexpr = STAGES if row_bits <= LARGEST_ON_THEIR_WAY else 1
    is_centred: tl.constexpr = first[1] is not None
    weight_1, weight_2 = _load(first[0], column, inside), _load(second[0], column, inside)
    if is_centred:
        bias_1, bias_2 = _load(first[1], column, inside), _load(second[1], column, inside)
    for row in tl.range(tl.program_id(0), rows, tl.num_programs(0), num_stages=stages):
        start = tl.cast(row, tl.int64) * width  # passes 2**31
        x = _load(hidden + start, column, inside)
        if is_centred:
            mean = tl.sum(x) / width
            x = tl.where(inside, x - mean, 0.0)
            tl.store(statistics + row, mean)
        scale = tl.rsqrt(tl.sum(x * x) / width + eps)
        tl.store(statistics + rows + row, scale)
        out_1, out_2 = x * scale * weight_1, x * scale * weight_2
        if is_centred:
            out_1, out_2 = out_1 + bias_1, out_2 + bias_2
        _store(outs[0] + start, column, inside, out_1)
        _store(outs[1] + start, column, inside, out_2)


@triton.jit
def backward_kernel(
    rows_of, statistics, weights, out, sums, size, is_centred: tl.constexpr, block: tl.constexpr
):
    """Write the gradient of every n-th row, and this program's sums over its rows.

    `rows_of` are x and the gradients that reach x on other ways, y_1 and y_2. `sums` are
    [programs, 4, h], of w_1, w_2, b_1, b_2, or with RMSNorm [programs, 2, h], of w_1, w_2.
    """
    rows, width = size
    column = tl.arange(0, block)
    inside = column < width
    row_bits: tl.constexpr = block * rows_of[0].dtype.element_ty.primitive_bitwidth
    stages: tl.constexpr = STAGES if row_bits <= LARGEST_ON_THEIR_WAY else 1
    weight_1, weight_2 = _load(weights[0], column, inside), _load(weights[1], column, inside)
    sum_1, sum_2 = tl.zeros((block,), tl.float32), tl.zeros((block,), tl.float32)
    if is_centred:
        plain_1, plain_2 = tl.zeros((block,), tl.float32), tl.zeros((block,), tl.float32)
    for row in tl.range(tl.program_id(0), rows, tl.num_programs(0), num_stages=stages):
        start = tl.cast(row, tl.int64) * width  # passes 2**31
        x = _load(rows_of[0] + start, column, inside)
        passed = _load(rows_of[1] + start, column, inside)
        gradient_1 = _load(rows_of[2] + start, column, inside)
        gradient_2 = _load(rows_of[3] + start, column, inside)
        scale = tl.load(statistics + rows + row)
        if is_centred:
            x = tl.where(inside, x - tl.load(statistics + row), 0.0)
        x *= scale
        sum_1 += gradient_1 * x
        sum_2 += gradient_2 * x
        gradient = gradient_1 * weight_1 + gradient_2 * weight_2
        change = gradient - x * (tl.sum(gradient * x) / width)
        if is_centred:
            plain_1 += gradient_1
            plain_2 += gradient_2
            change -= tl.sum(gradient) / width
        _store(out + start, column, inside, passed + scale * change)
    sums += tl.program_id(0) * (4 if is_centred else 2) * width
    _store(sums, column, inside, sum_1)
    _store(sums + width, column, inside, sum_2)
    if is_centred:
        _store(sums + 2 * width, column, inside, plain_1)
        _store(sums + 3 * width, column, inside, plain_2)


def normalize(
    hidden: Tensor, first: Affine, second: Affine, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return both norms of each row, and what the backward pass needs of it.

    Args:
        hidden: [..., h], contiguous.
        first: weight and bias of one norm; with or without bias as the other's.
        second: weight and bias of the other.
        eps: added to the variance.

    Returns:
        Two of [..., h], and statistics [2, rows] float32: mean (RMSNorm has none) and scale.

    Comm: none.
    """
    _check(hidden, first, second)
    width = hidden.shape[-1]
    rows = hidden.numel() // width
    outs = torch.empty_like(hidden), torch.empty_like(hidden)
    statistics = hidden.new_empty(2, rows, dtype=torch.float32)
    block, warps = _tile(width)
    grid = (_programs(rows, warps),)
    forward_kernel[grid](
        hidden, first, second, outs, statistics, (rows, width), eps, block, num_warps=warps
    )
    return *outs, statistics


def normalize_backward(
    hidden: Tensor,
    statistics: Tensor,
    gradients: tuple[Tensor, Tensor, Tensor],
    weights: tuple[Tensor, Tensor],
    *,
    is_centred: bool,
) -> tuple[Tensor, Tensor]:
    """Return the gradient of the rows and those of weights and biases.

    Args:
        hidden: [..., h], contiguous.
        statistics: of `normalize`.
        gradients: of the rows on other ways and of both norms, like hidden.
        weights: of both norms, [h].
        is_centred: whether it is LayerNorm with biases, else RMSNorm.

    Returns:
        [..., h], and float32 [4, h] of both weights and both biases, or [2, h] of both weights.

    Comm: none.
    """
    width = hidden.shape[-1]
    rows = hidden.numel() // width
    out = torch.empty_like(hidden)
    block, warps = _tile(width)
    programs = _programs(rows, warps)
    sums = hidden.new_empty(programs, 4 if is_centred else 2, width, dtype=torch.float32)
    sources = (hidden, *(gradient.contiguous() for gradient in gradients))
    backward_kernel[(programs,)](
        sources, statistics, weights, out, sums, (rows, width), is_centred, block, num_warps=warps
    )
    return out, sums.sum(dim=0)


def _tile(width: int) -> tuple[int, int]:
    """Return the columns and the warps of a program."""
    block = triton.next_power_of_2(width)
    return block, min(max(block // VALUES_PER_WARP, 1), MAX_WARPS)


def _programs(rows: int, warps: int) -> int:
    """Return how many programs share the rows."""
    return max(1, min(rows, RESIDENT_WARPS // warps))


def _check(hidden: Tensor, first: Affine, second: Affine) -> None:
    """Catch what the kernels, which see only addresses, would silently misread."""
    width = hidden.shape[-1]
    assert hidden.is_contiguous(), "the kernels walk rows of adjacent columns"
    assert width <= MAX_WIDTH, f"rows of {width} columns, at most {MAX_WIDTH} fit a program"
    assert (first[1] is None) == (second[1] is None), "both norms have a bias or none has"
    for part in (*first, *second):
        assert part is None or part.shape == (width,), f"{part.shape} for rows of {width}"
        assert part is None or part.is_contiguous(), "adjacent columns"
