# SPDX-License-Identifier: Apache-2.0
"""Triton kernels for products of a few rows, which only stream the weights once.

A program has a few outputs of one row and sums elementwise until the end, so that all lanes
do is load and multiply. The norm in front is part of the first kernel: with v = x + shift,

    norm(v) W^T = (v W^T - mean(v) * sum(W)) / deviation(v)

and mean and deviation are summed up on the way. So a layer is three kernels, with
attention between two of these.
"""
# ruff: noqa: ANN001, ANN201  (the compiler types the kernels' arguments)

from dataclasses import dataclass

import triton
import triton.language as tl

from bt_megatron.inference.engine.elementwise_kernels import activated, to_type


@dataclass(frozen=True, slots=True)
class NarrowShape:
    """What the kernels are compiled for."""

    inputs: int
    outputs: int
    plain: int
    """Outputs below this go to `out`; the others are activated and go to `joined`."""
    activation: str
    layernorm: bool
    epsilon: float
    x_stride: int
    out_stride: int
    joined_stride: int
    joined_offset: int
    tile: int
    """Outputs of a program."""
    depth: int
    """Inputs read at a time."""


@triton.jit
def narrow_first_kernel(x, shift, weight, sums, bias, out, joined, shape: tl.constexpr):
    """Normalise, multiply, add the bias and activate.

    Args:
        x: [M, k].
        shift: [k] float32.
        weight: [n, k].
        sums: [2, n] float32: scale of the weights, and their sum times it.
        bias: [n], or None.
        out: [M, plain], written.
        joined: [M, ...], outputs from `plain` on are written from `joined_offset` on.
        shape: a NarrowShape.
    """
    row = tl.program_id(0)
    tile: tl.constexpr = shape.tile
    depth: tl.constexpr = shape.depth
    n = tl.program_id(1) * tile + tl.arange(0, tile)
    inside = n < shape.outputs
    rows = weight + n.to(tl.int64)[:, None] * shape.inputs
    total = tl.zeros((tile, depth), tl.float32)
    level = tl.zeros((depth,), tl.float32)
    square = tl.zeros((depth,), tl.float32)
    for start in range(0, shape.inputs, depth):
        k = start + tl.arange(0, depth)
        there = k < shape.inputs
        w = tl.load(rows + k[None, :], mask=inside[:, None] & there[None, :], other=0.0)
        v = tl.load(x + row * shape.x_stride + k, mask=there, other=0.0).to(tl.float32)
        v += tl.load(shift + k, mask=there, other=0.0)
        total += w.to(tl.float32) * v[None, :]
        level += v
        square += v * v
    scale = tl.load(sums + n, mask=inside, other=0.0)
    weights = tl.load(sums + shape.outputs + n, mask=inside, other=0.0)
    mean = tl.sum(level) / shape.inputs if shape.layernorm else 0.0
    variance = tl.sum(square) / shape.inputs - mean * mean
    y = (tl.sum(total, axis=1) * scale - mean * weights) / tl.sqrt(variance + shape.epsilon)
    if bias is not None:
        y += tl.load(bias + n, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * shape.out_stride + n, to_type(y, out), mask=n < shape.plain)
    if shape.plain < shape.outputs:
        y = y.to(out.dtype.element_ty).to(tl.float32)  # as when it is stored in between
        to = joined + row * shape.joined_stride + shape.joined_offset + n - shape.plain
        kind: tl.constexpr = shape.activation
        y = to_type(activated(y, y, kind), joined)
        tl.store(to, y, mask=inside & (n >= shape.plain))


@triton.jit
def narrow_last_kernel(x, inputs, weight, sums, shape: tl.constexpr):
    """Multiply and add to the residual stream: x [M, n] += inputs [M, k] weight [n, k]^T."""
    row = tl.program_id(0)
    tile: tl.constexpr = shape.tile
    depth: tl.constexpr = shape.depth
    n = tl.program_id(1) * tile + tl.arange(0, tile)
    inside = n < shape.outputs
    rows = weight + n.to(tl.int64)[:, None] * shape.inputs
    total = tl.zeros((tile, depth), tl.float32)
    for start in range(0, shape.inputs, depth):
        k = start + tl.arange(0, depth)
        there = k < shape.inputs
        w = tl.load(rows + k[None, :], mask=inside[:, None] & there[None, :], other=0.0)
        v = tl.load(inputs + row * shape.joined_stride + k, mask=there, other=0.0)
        total += w.to(tl.float32) * v.to(tl.float32)[None, :]
    place = x + row * shape.x_stride + n
    y = tl.sum(total, axis=1) * tl.load(sums + n, mask=inside, other=0.0)
    y += tl.load(place, mask=inside, other=0.0).to(tl.float32)
    tl.store(place, to_type(y, x), mask=inside)
