# SPDX-License-Identifier: Apache-2.0
"""Triton kernel for the token decoder's attention while a block is written.

A row of a tile is one group of heads of one sequence. A block has a few positions, so
scores are sums over lanes without tensor cores, and loops over positions are unrolled.
New keys and values go to the memory of the block on the way.
"""
# mypy: disable-error-code="assignment, misc"
# ruff: noqa: ANN001, ANN201  (the compiler types the kernel's arguments)

from dataclasses import dataclass

import triton
import triton.language as tl

from bt_megatron.inference.engine.elementwise_kernels import to_type

LOG2E = tl.constexpr(1.4426950408889634)


@dataclass(frozen=True, slots=True)
class BlockShape:
    """What the kernel is compiled for."""

    first: int
    """Known positions."""
    new: int
    """New positions that follow them."""
    positions: int
    """Positions that `past` has room for."""
    heads: int
    groups: int
    width: int
    """d"""
    scale: float
    mixed_stride: int
    out_stride: int
    angle_positions: int
    rows: int
    """Of a tile."""


@triton.jit
def turn(x, angles, position, rows: tl.constexpr, width: tl.constexpr, table: tl.constexpr):
    """Rotate dimensions 2i and 2i+1 of x [rows, d] by the angles of a position of `table`."""
    half: tl.constexpr = width // 2
    pair = position * half + tl.arange(0, half)
    cos = tl.load(angles + pair)[None, :]
    sin = tl.load(angles + table * half + pair)[None, :]
    first, second = tl.split(tl.reshape(x, (rows, half, 2)))
    turned = tl.join(first * cos - second * sin, second * cos + first * sin)
    return tl.reshape(turned, (rows, width))


@triton.jit(do_not_specialize=["count"])
def block_attention_kernel(mixed, past, out, angles, count, shape: tl.constexpr):
    """Attend causally with new positions that follow known ones.

    Args:
        mixed: [B * new, (a + 2 g) d].
        past: [2 (keys, values), q, B, g * d]; new positions are written.
        out: [B * new, a * d], written.
        angles: [2 (cosines, sines), positions, d/2] float32.
        count: B.
        shape: a BlockShape.
    """
    first: tl.constexpr = shape.first
    new: tl.constexpr = shape.new
    width: tl.constexpr = shape.width
    rows: tl.constexpr = shape.rows
    table: tl.constexpr = shape.angle_positions
    repeats: tl.constexpr = shape.heads // shape.groups
    index = tl.program_id(0) * shape.rows + tl.arange(0, shape.rows)
    valid = (index < count * shape.groups)[:, None]
    sequence, group = (index // shape.groups).to(tl.int64)[:, None], (index % shape.groups)[:, None]
    lane = tl.arange(0, width)[None, :]
    plane = count.to(tl.int64) * (shape.groups * width)
    held = past + sequence * (shape.groups * width) + group * width + lane
    values = shape.positions * plane

    key_list, value_list = (), ()
    for j in tl.static_range(first):
        key_list += (tl.load(held + j * plane, mask=valid, other=0.0).to(tl.float32),)
        value = tl.load(held + j * plane + values, mask=valid, other=0.0)
        value_list += (value.to(tl.float32),)
    for j in tl.static_range(new):
        place = (sequence * new + j) * shape.mixed_stride + (shape.heads + group) * width + lane
        key = tl.load(mixed + place, mask=valid, other=0.0).to(tl.float32)
        key = turn(key, angles, first + j, rows, width, table)
        value = tl.load(mixed + place + shape.groups * width, mask=valid, other=0.0)
        tl.store(held + (first + j) * plane, key.to(past.dtype.element_ty), mask=valid)
        tl.store(held + (first + j) * plane + values, value, mask=valid)
        key_list += (key,)
        value_list += (value.to(tl.float32),)

    for head in range(repeats):
        for i in tl.static_range(new):
            row, column = sequence * new + i, (group * repeats + head) * width + lane
            query = tl.load(mixed + row * shape.mixed_stride + column, mask=valid, other=0.0)
            query = turn(query.to(tl.float32), angles, first + i, rows, width, table)
            query *= shape.scale * LOG2E
            scores = ()
            for j in tl.static_range(first + i + 1):
                scores += (tl.sum(query * key_list[j], axis=1),)
            top = scores[0]
            for j in tl.static_range(1, first + i + 1):
                top = tl.maximum(top, scores[j])
            total = tl.zeros_like(top)
            vector = tl.zeros_like(query)
            for j in tl.static_range(first + i + 1):
                power = tl.exp2(scores[j] - top)
                total += power
                vector += power[:, None] * value_list[j]
            vector = to_type(vector / total[:, None], out)
            tl.store(out + row * shape.out_stride + column, vector, mask=valid)
