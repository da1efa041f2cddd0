# SPDX-License-Identifier: Apache-2.0
"""Triton kernels for attention over the paged cache: one new position a row, and prompts.

Decoding is bound by reading keys and values once. Each program streams the pages of one
group of heads of one row, or of a part of them when there are too few rows to fill the
device (split-K); the parts are then joined. Groups of a row run side by side, as they lie
in memory, so that few pages of the address translation are in use at a time.

With one query head a group, every place of a tile keeps a running softmax of its own, and
nothing is exchanged between lanes before the end. With more, tensor cores multiply.
"""
# mypy: disable-error-code="assignment, misc"
# ruff: noqa: ANN001, ANN201, ANN202  (the compiler types the kernels' arguments)

from dataclasses import dataclass

import triton
import triton.language as tl

from bt_megatron.inference.engine.block_attention_kernel import LOG2E, turn
from bt_megatron.inference.engine.elementwise_kernels import to_type

LOWEST = tl.constexpr(-1.0e30)
LENGTH, ALIVE, WHOLE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(8)
"""Columns of rows.Whole, and how many there are."""


@dataclass(frozen=True, slots=True)
class CacheShape:
    """What the kernels are compiled for."""

    heads: int
    groups: int
    width: int
    """d"""
    scale: float
    positions: int
    """P"""
    mixed_stride: int
    out_stride: int
    table_width: int
    angle_positions: int
    splits: int
    """Parts of a row."""
    tile: int
    """Positions of a tile; prompts: a power of two that holds a + g heads."""
    stages: int
    """Tiles that are on their way from memory at a time; 1: the compiler decides."""


@triton.jit
def rotated(rows, position, angles, mask, shape: tl.constexpr):
    """Load vectors [..., d] at `rows` (pointers to their begin) and rotate them."""
    half: tl.constexpr = shape.width // 2
    lane = tl.arange(0, shape.width)[None, :]
    x = tl.load(rows + lane, mask=mask, other=0.0).to(tl.float32)
    partner = tl.load(rows + (lane ^ 1), mask=mask, other=0.0).to(tl.float32)
    cos = tl.load(angles + position * half + lane // 2)
    sin = tl.load(angles + (shape.angle_positions + position) * half + lane // 2)
    return x * cos + partner * tl.where(lane % 2 == 0, -sin, sin)


@triton.jit
def new_position(mixed, cache, table, length, alive, angles, shape: tl.constexpr):
    """Return the new key and value [1, d] of this row and group; the first part stores them."""
    row, group = tl.program_id(1).to(tl.int64), tl.program_id(0)
    lane = tl.arange(0, shape.width)[None, :]
    place = mixed + row * shape.mixed_stride + (shape.heads + group) * shape.width
    everywhere = lane >= 0
    key = rotated(place, length, angles, everywhere, shape)
    value = tl.load(place + shape.groups * shape.width + lane).to(tl.float32)
    if (tl.program_id(2) == 0) & (alive != 0):
        page = tl.load(table + length // shape.positions).to(tl.int64)
        inside = group * shape.positions + length % shape.positions
        plane: tl.constexpr = shape.groups * shape.positions
        at = cache + (page * (2 * plane) + inside) * shape.width + lane
        tl.store(at, to_type(key, cache))
        tl.store(at + plane * shape.width, to_type(value, cache))
    return key, value


@triton.jit
def tile_of(cache, table, position, there, shape: tl.constexpr):
    """Load keys and values [tile, d] of some positions."""
    plane: tl.constexpr = shape.groups * shape.positions
    page = tl.load(table + position // shape.positions, mask=there, other=0).to(tl.int64)
    inside = tl.program_id(0) * shape.positions + position % shape.positions
    at = cache + ((page * (2 * plane) + inside) * shape.width)[:, None]
    at += tl.arange(0, shape.width)[None, :]
    key = tl.load(at, mask=there[:, None], other=0.0)
    value = tl.load(at + plane * shape.width, mask=there[:, None], other=0.0)
    return key, value


@triton.jit
def part_of(length, shape: tl.constexpr):
    """Return where this program's part of a row begins and ends."""
    size = tl.cdiv(tl.cdiv(length, shape.tile), shape.splits) * shape.tile
    begin = tl.program_id(2) * size
    return begin, tl.minimum(begin + size, length)


@triton.jit
def cached_attention_kernel(mixed, cache, table, whole, angles, out, part, shape: tl.constexpr):
    """Append a position to one head of one row, and attend to part of its cache; a = g.

    Args:
        mixed: [B, (a + 2 g) d].
        cache: [pages, 2, g, P, d] of this layer.
        table: [B, pages of a row].
        whole: [B, 8] int32.
        angles: [2 (cosines, sines), positions, d/2] float32.
        out: [B, a * d], written if there is one part.
        part: [B, a, splits, d + 2] float32, written otherwise: sum, largest score, weight.
        shape: a CacheShape.
    """
    row, head, split = tl.program_id(1).to(tl.int64), tl.program_id(0), tl.program_id(2)
    tile: tl.constexpr = shape.tile
    width: tl.constexpr = shape.width
    stages: tl.constexpr = None if shape.stages == 1 else shape.stages
    alive = tl.load(whole + row * WHOLE + ALIVE)
    length = tl.load(whole + row * WHOLE + LENGTH) * alive
    table += row * shape.table_width
    lane = tl.arange(0, width)[None, :]
    new_key, new_value = new_position(mixed, cache, table, length, alive, angles, shape)
    place = mixed + row * shape.mixed_stride + head * width
    query = rotated(place, length, angles, lane >= 0, shape) * (shape.scale * LOG2E)
    top = tl.full((tile,), LOWEST, tl.float32)
    weight = tl.zeros((tile,), tl.float32)
    total = tl.zeros((tile, width), tl.float32)
    begin, end = part_of(length, shape)
    for start in tl.range(begin, end, tile, num_stages=stages):
        position = start + tl.arange(0, tile)
        there = position < end
        key, value = tile_of(cache, table, position, there, shape)
        score = tl.where(there, tl.sum(key.to(tl.float32) * query, axis=1), LOWEST)
        higher = tl.maximum(top, score)
        shrink = tl.exp2(top - higher)
        power = tl.where(there, tl.exp2(score - higher), 0.0)
        total = total * shrink[:, None] + power[:, None] * value.to(tl.float32)
        weight = weight * shrink + power
        top = higher
    own = tl.where(split == 0, tl.sum(query * new_key), LOWEST)
    best = tl.maximum(tl.max(top), own)
    factor = tl.exp2(top - best)
    power = tl.where(split == 0, tl.exp2(own - best), 0.0)
    joined = tl.sum(total * factor[:, None], axis=0)[None, :] + power * new_value
    mass = tl.sum(weight * factor) + power
    if shape.splits == 1:
        tl.store(out + row * shape.out_stride + head * width + lane, to_type(joined / mass, out))
    else:
        place = part + ((row * shape.heads + head) * shape.splits + split) * (width + 2)
        tl.store(place + lane, joined)
        tl.store(place + width, best)
        tl.store(place + width + 1, mass)


@triton.jit
def grouped_attention_kernel(mixed, cache, table, whole, angles, out, part, shape: tl.constexpr):
    """As cached_attention_kernel, for one group of several heads of one row."""
    row, group, split = tl.program_id(1).to(tl.int64), tl.program_id(0), tl.program_id(2)
    width: tl.constexpr = shape.width
    repeats: tl.constexpr = shape.heads // shape.groups
    padded: tl.constexpr = 16 if repeats <= 16 else repeats  # what tensor cores take
    alive = tl.load(whole + row * WHOLE + ALIVE)
    length = tl.load(whole + row * WHOLE + LENGTH) * alive
    table += row * shape.table_width
    lane, repeat = tl.arange(0, width)[None, :], tl.arange(0, padded)
    new_key, new_value = new_position(mixed, cache, table, length, alive, angles, shape)
    head = group * repeats + repeat
    real = (repeat < repeats)[:, None]
    place = mixed + row * shape.mixed_stride + head[:, None] * width
    query = rotated(place, length, angles, real & (lane >= 0), shape) * (shape.scale * LOG2E)
    kind: tl.constexpr = mixed.dtype.element_ty
    top = tl.full((padded,), LOWEST, tl.float32)
    weight = tl.zeros((padded,), tl.float32)
    total = tl.zeros((padded, width), tl.float32)
    begin, end = part_of(length, shape)
    for start in range(begin, end, shape.tile):
        position = start + tl.arange(0, shape.tile)
        there = position < end
        key, value = tile_of(cache, table, position, there, shape)
        score = tl.dot(query.to(kind), tl.trans(key.to(kind)), input_precision="ieee")
        score = tl.where(there[None, :], score, LOWEST)
        higher = tl.maximum(top, tl.max(score, axis=1))
        shrink = tl.exp2(top - higher)
        power = tl.where(there[None, :], tl.exp2(score - higher[:, None]), 0.0)
        added = tl.dot(power.to(kind), value.to(kind), input_precision="ieee")
        total = total * shrink[:, None] + added
        weight = weight * shrink + tl.sum(power, axis=1)
        top = higher
    own = tl.where(split == 0, tl.sum(query * new_key, axis=1), LOWEST)
    best = tl.maximum(top, own)
    shrink = tl.exp2(top - best)
    power = tl.where(split == 0, tl.exp2(own - best), 0.0)
    total = total * shrink[:, None] + power[:, None] * new_value
    weight = weight * shrink + power
    if shape.splits == 1:
        to = out + row * shape.out_stride + head[:, None] * width + lane
        tl.store(to, to_type(total / weight[:, None], out), mask=real)
    else:
        to = part + ((row * shape.heads + head) * shape.splits + split) * (width + 2)
        tl.store(to[:, None] + lane, total, mask=real)
        tl.store(to + width, best, mask=repeat < repeats)
        tl.store(to + width + 1, weight, mask=repeat < repeats)


@triton.jit
def join_kernel(part, out, padded: tl.constexpr, shape: tl.constexpr):
    """Join the parts of one head of one row: part [B, a, splits, d + 2] -> out [B, a * d]."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    width: tl.constexpr = shape.width
    lane, split = tl.arange(0, width), tl.arange(0, padded)
    there = split < shape.splits
    rows = part + ((row * shape.heads + head) * shape.splits + split) * (width + 2)
    top = tl.load(rows + width, mask=there, other=LOWEST)
    mass = tl.load(rows + width + 1, mask=there, other=0.0)
    total = tl.load(rows[:, None] + lane[None, :], mask=there[:, None], other=0.0)
    factor = tl.exp2(top - tl.max(top))
    joined = tl.sum(total * factor[:, None], axis=0) / tl.sum(mass * factor)
    tl.store(out + row * shape.out_stride + head * width + lane, to_type(joined, out))


@triton.jit(do_not_specialize=["per_prompt"])
def prompt_kernel(mixed, cache, table, lengths, angles, per_prompt, shape: tl.constexpr):
    """Rotate queries and keys of one position of a prompt in place; store keys and values.

    Args:
        mixed: [B * n, (a + 2 g) d].
        cache: [pages, 2, g, P, d] of this layer; None: nothing is stored.
        table: [B, pages of a row].
        lengths: [B] int32; positions from there on are not stored.
        angles: [2 (cosines, sines), positions, d/2] float32.
        per_prompt: n.
        shape: a CacheShape.
    """
    row = tl.program_id(0).to(tl.int64)
    prompt, position = row // per_prompt, row % per_prompt
    tile: tl.constexpr = shape.tile
    width: tl.constexpr = shape.width
    angle_positions: tl.constexpr = shape.angle_positions
    head, lane = tl.arange(0, tile)[:, None], tl.arange(0, width)[None, :]
    real = (head < shape.heads + shape.groups) & (lane >= 0)
    place = mixed + row * shape.mixed_stride + head * width + lane
    turned = tl.load(place, mask=real, other=0.0).to(tl.float32)
    turned = turn(turned, angles, position, tile, width, angle_positions)
    tl.store(place, turned.to(mixed.dtype.element_ty), mask=real)
    if cache is not None:
        length = tl.load(lengths + prompt)
        if position < length:
            pages = table + prompt * shape.table_width
            page = tl.load(pages + position // shape.positions).to(tl.int64)
            is_key = real & (head >= shape.heads)
            plane: tl.constexpr = shape.groups * shape.positions
            inside = (head - shape.heads) * shape.positions + position % shape.positions
            at = cache + (page * (2 * plane) + inside) * width + lane
            value = tl.load(place + shape.groups * width, mask=is_key, other=0.0)
            tl.store(at, to_type(turned, cache), mask=is_key)
            tl.store(at + plane * width, to_type(value.to(tl.float32), cache), mask=is_key)
