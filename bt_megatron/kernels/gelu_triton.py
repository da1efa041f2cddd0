# SPDX-License-Identifier: Apache-2.0
"""Triton kernels of GELU(x + b): the gradient of b is summed while that of x is written.

Forward a program has one group of rows. Backward it owns some columns of every n-th group, whose
sums it keeps in registers. They are written once a program and added up in the order of the
programs, so that every run gives the same bits. All is computed in float32.

    forward    y = u * cdf(u), u = x + b, cdf(u) = (1 + erf(u / sqrt(2))) / 2
    backward   dx = dy * (cdf(u) + u * pdf(u)), pdf(u) = exp(-u^2 / 2) / sqrt(2 pi)
               db = sum over rows of dx, before it is rounded
"""

# ruff: noqa: ANN001, ANN201, ANN202  (the compiler types the kernels' arguments)
import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 4
"""Rows that a program holds at a time; their loads are under way together."""
MAX_BLOCK = 1024
"""Columns that a program holds at most."""
VALUES_PER_WARP = 256
"""Columns that a warp holds: 8 a thread, which are the 16 bytes of one access in bf16."""
RESIDENT_WARPS = 132 * 16
"""Warps that work at a time: 16 on each of the 132 multiprocessors of an H100.

A constant, and not what the GPU at hand has, so that sums have the same order on all.
"""
SQRT_HALF = tl.constexpr(0.7071067811865476)
PDF_AT_ZERO = tl.constexpr(0.3989422804014327)
"""(2 pi)^-1/2."""


@triton.jit
def _columns(bias, width, block: tl.constexpr):
    """Return this program's columns, which of them exist, and their biases."""
    column = tl.program_id(1) * block + tl.arange(0, block)
    inside = column < width
    return column, inside, tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _place(first, column, inside, size, height: tl.constexpr):
    """Return offsets of a group of rows and which of them exist, [height, block]."""
    rows, width = size
    row = first + tl.arange(0, height)[:, None]
    return row.to(tl.int64) * width + column, (row < rows) & inside  # passes 2**31


@triton.jit
def forward_kernel(x, bias, out, size, height: tl.constexpr, block: tl.constexpr):
    """Write the activations of a group of rows."""
    rows, width = size
    column, inside, shift = _columns(bias, width, block)
    place, there = _place(tl.program_id(0) * height, column, inside, size, height)
    u = tl.load(x + place, mask=there, other=0.0).to(tl.float32) + shift
    value = u * (0.5 + 0.5 * tl.erf(u * SQRT_HALF))
    tl.store(out + place, value.to(out.dtype.element_ty), mask=there)


@triton.jit
def backward_kernel(gradient, x, bias, out, sums, size, height: tl.constexpr, block: tl.constexpr):
    """Write the gradient of every n-th group of rows and, to sums [programs, f], its sum."""
    rows, width = size
    column, inside, shift = _columns(bias, width, block)
    total = tl.zeros((block,), tl.float32)
    for first in tl.range(tl.program_id(0) * height, rows, tl.num_programs(0) * height):
        place, there = _place(first, column, inside, size, height)
        upstream = tl.load(gradient + place, mask=there, other=0.0).to(tl.float32)
        u = tl.load(x + place, mask=there, other=0.0).to(tl.float32) + shift
        density = PDF_AT_ZERO * tl.exp(-0.5 * u * u)
        value = upstream * (0.5 + 0.5 * tl.erf(u * SQRT_HALF) + u * density)
        total += tl.sum(value, axis=0)
        tl.store(out + place, value.to(out.dtype.element_ty), mask=there)
    tl.store(sums + tl.program_id(0) * width + column, total, mask=inside)


def activate(x: Tensor, bias: Tensor) -> Tensor:
    """Return GELU(x + bias), rounded once.

    Args:
        x: [..., f], contiguous.
        bias: [f].

    Returns:
        [..., f].

    Comm: none.
    """
    _check(x, bias)
    out = torch.empty_like(x)
    tile, across = _tile(x)
    rows, _ = size = _size(x)
    forward_kernel[triton.cdiv(rows, ROWS), across](x, bias, out, size, **tile)
    return out


def activate_backward(gradient: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and bias.

    Args:
        gradient: of GELU(x + bias), like x.
        x: [..., f], contiguous.
        bias: [f].

    Returns:
        [..., f], and [f] float32.

    Comm: none.
    """
    gradient, out = gradient.contiguous(), torch.empty_like(x)
    tile, across = _tile(x)
    rows, width = size = _size(x)
    resident = max(1, RESIDENT_WARPS // (tile["num_warps"] * across))
    programs = max(1, min(triton.cdiv(rows, ROWS), resident))
    sums = x.new_empty(programs, width, dtype=torch.float32)
    backward_kernel[programs, across](gradient, x, bias, out, sums, size, **tile)
    return out, sums.sum(dim=0)


def _size(x: Tensor) -> tuple[int, int]:
    """Return rows and columns."""
    return x.numel() // x.shape[-1], x.shape[-1]


def _tile(x: Tensor) -> tuple[dict[str, int], int]:
    """Return how the kernels are compiled, and how many programs share the columns."""
    width = x.shape[-1]
    block = min(triton.next_power_of_2(width), MAX_BLOCK)
    warps = max(block // VALUES_PER_WARP, 1)
    return {"height": ROWS, "block": block, "num_warps": warps}, triton.cdiv(width, block)


def _check(x: Tensor, bias: Tensor) -> None:
    """Catch what the kernels, which see only addresses, would silently misread."""
    assert x.is_contiguous(), "the kernels walk rows of adjacent columns"
    assert bias.shape == x.shape[-1:], (bias.shape, x.shape)
    assert bias.is_contiguous(), "adjacent columns"
