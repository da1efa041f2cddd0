# SPDX-License-Identifier: Apache-2.0
"""Attention inside blocks of more positions: whole blocks packed into one tile.

A row of a tile is a position of a sequence; a tile of 64 rows holds 64 // q sequences.
Scores of the whole tile are one product on the tensor cores, of which only the
squares on the diagonal count. A sequence is one group of heads of one column, as in
token_attention_unrolled.py. q is an argument, so that all q share one compiled kernel.
Letters of shapes: bt_megatron/model/shapes.py.
"""

from typing import Any

import triton
import triton.language as tl

from bt_megatron.kernels.rotary_halves import half_offsets, load_angles, load_halves, rotate
from bt_megatron.kernels.token_attention_unrolled import LOG2E, LOWEST


@triton.constexpr_function
def _lanes_of(shape: Any) -> int:
    """Return the lanes of half a head; products need 16, so those of d = 16 are padded."""
    return max(16, shape.head_dim // 2)


@triton.jit
def _rows(columns: tl.tensor, positions: tl.tensor, shape: tl.constexpr) -> Any:
    """Return sequence in the tile, position, column, group and validity of each row."""
    row = tl.arange(0, shape.rows)
    local, position = row // positions, row % positions
    per_tile = shape.rows // positions
    sequence = tl.program_id(0) * per_tile + local
    column, group = sequence // shape.groups, sequence % shape.groups
    return local, position, column, group, (local < per_tile) & (column < columns)


@triton.jit
def _lanes(valid: tl.tensor, shape: tl.constexpr, rotated: tl.constexpr) -> Any:
    """Return offsets of both halves and what of [rows, lanes] is there."""
    lanes = tl.arange(0, _lanes_of(shape))[None, :]
    first, second = half_offsets(lanes, shape.head_dim, rotated)
    there = valid[:, None]
    if shape.head_dim < 32:
        there = there & (lanes < shape.head_dim // 2)
    return first, second, there


@triton.jit
def _load(pointer: tl.tensor, valid: tl.tensor, shape: tl.constexpr, rotated: tl.constexpr) -> Any:
    """Load both halves [rows, lanes]; values and outputs are not `rotated` (0)."""
    first, second, there = _lanes(valid, shape, rotated)
    return load_halves(pointer[:, None], first, second, there)


@triton.jit
def _store(
    pointer: tl.tensor,
    halves: tl.tensor,
    valid: tl.tensor,
    shape: tl.constexpr,
    rotated: tl.constexpr,
) -> None:
    """Store both halves [rows, lanes]."""
    first, second, there = _lanes(valid, shape, rotated)
    pointer = pointer[:, None]
    tl.store(pointer + first, halves[0].to(pointer.dtype.element_ty), mask=there)
    tl.store(pointer + second, halves[1].to(pointer.dtype.element_ty), mask=there)


@triton.jit
def _angles(
    rotary: tl.tensor, position: tl.tensor, positions: tl.tensor, shape: tl.constexpr
) -> Any:
    """Load cosines and sines of all rows [rows, lanes]; None without rotary."""
    if shape.rotated == 0:
        angles = None
    else:
        lanes = tl.arange(0, _lanes_of(shape))[None, :]
        at = position[:, None] * shape.rotated + lanes
        within = (lanes < shape.rotated // 2) & (position >= 0)[:, None]
        angles = load_angles(rotary, at, positions * shape.rotated, within)
    return angles


@triton.jit
def _turn(halves: tl.tensor, angles: tl.tensor, back: tl.constexpr) -> Any:
    """Rotate both halves, or rotate them back; the type stays."""
    if angles is None:
        turned = halves
    else:
        kind: tl.constexpr = halves[0].dtype
        sin = -angles[1] if back else angles[1]
        a, b = rotate(halves[0].to(tl.float32), halves[1].to(tl.float32), angles[0], sin)
        turned = a.to(kind), b.to(kind)
    return turned


@triton.jit
def _product(x: tl.tensor, y: tl.tensor) -> Any:
    """Return the products of all rows of x and y, [rows, rows], as float32."""
    total = tl.dot(x[0], tl.trans(y[0]), input_precision="tf32x3")
    return tl.dot(x[1], tl.trans(y[1]), total, input_precision="tf32x3")


@triton.jit
def _mix(weights: tl.tensor, halves: tl.tensor) -> Any:
    """Return both halves of weights @ vectors as float32; weights take the vectors' type."""
    weights = weights.to(halves[0].dtype)
    a = tl.dot(weights, halves[0], input_precision="tf32x3")
    return a, tl.dot(weights, halves[1], input_precision="tf32x3")


@triton.jit
def _visible(local: tl.tensor, position: tl.tensor, seen: tl.tensor, shape: tl.constexpr) -> Any:
    """Return which keys are of the query's sequence, and which of them it may look at."""
    same = local[:, None] == local[None, :]
    visible = same
    if shape.causal:
        visible = visible & (position[None, :] <= position[:, None])
    if seen is not None:
        visible = visible & seen[None, :]
    return same, visible


@triton.jit
def _softmax(
    query: tl.tensor,
    key: tl.tensor,
    same: tl.tensor,
    visible: tl.tensor,
    shape: tl.constexpr,
) -> Any:
    """Return the weights [rows, rows], and which rows see a key at all [rows].

    The weights of a row that sees none are those of an average over all keys of its sequence.
    """
    factor: tl.constexpr = shape.scale * LOG2E
    hidden = tl.where(same, LOWEST, float("-inf"))
    scores = tl.where(visible, _product(query, key) * factor, hidden)
    top = tl.max(scores, axis=1)
    powers = tl.exp2(scores - top[:, None])
    return powers * (1.0 / tl.sum(powers, axis=1))[:, None], top > LOWEST


@triton.jit
def _seen_keys(
    mask: tl.tensor,
    position: tl.tensor,
    column: tl.tensor,
    columns: tl.tensor,
    valid: tl.tensor,
) -> Any:
    """Load which rows are seen as keys; None: all."""
    if mask is None:
        seen = None
    else:
        at = position.to(tl.int64) * columns + column
        seen = tl.load(mask + at, mask=valid, other=1) != 0
    return seen


@triton.jit(do_not_specialize=["columns", "positions"])
def tiled_forward(
    qkv: tl.tensor,
    out: tl.tensor,
    rotary: tl.tensor,
    mask: tl.tensor,
    columns: tl.tensor,
    positions: tl.tensor,
    shape: tl.constexpr,
) -> None:
    """Attend; a program computes as many sequences as `shape.rows` rows hold.

    Args:
        qkv: [q, columns, (a + 2*groups)*d], for each group its queries, key and value.
        out: [q, columns, a*d], written.
        rotary: [2, q, rotated] float32, or None.
        mask: [q, columns] bytes, or None.
        columns: n*b.
        positions: q.
        shape: a KernelShape.
    """
    repeats: tl.constexpr = shape.heads // shape.groups
    head_dim: tl.constexpr = shape.head_dim
    group_width: tl.constexpr = (repeats + 2) * head_dim
    local, position, column, group, valid = _rows(columns, positions, shape)
    row = position.to(tl.int64) * columns + column
    queries = qkv + (row * (shape.groups * group_width) + group * group_width)
    outs = out + (row * (shape.heads * head_dim) + group * (repeats * head_dim))

    angles = _angles(rotary, position, positions, shape)
    seen = _seen_keys(mask, position, column, columns, valid)
    same, visible = _visible(local, position, seen, shape)
    key = _load(queries + repeats * head_dim, valid, shape, shape.rotated)
    key = _turn(key, angles, False)
    value = _load(queries + (repeats + 1) * head_dim, valid, shape, 0)
    for head in range(repeats):
        if qkv.dtype.element_ty == tl.float32:
            # Loaded anew for each head: held in shared memory they would not fit at d = 128.
            key = _load(queries + repeats * head_dim, valid, shape, shape.rotated)
            key = _turn(key, angles, False)
            value = _load(queries + (repeats + 1) * head_dim, valid, shape, 0)
        query = _load(queries + head * head_dim, valid, shape, shape.rotated)
        query = _turn(query, angles, False)
        weights, _ = _softmax(query, key, same, visible, shape)
        _store(outs + head * head_dim, _mix(weights, value), valid, shape, 0)


@triton.jit(do_not_specialize=["columns", "positions"])
def tiled_backward(
    qkv: tl.tensor,
    out_grad: tl.tensor,
    qkv_grad: tl.tensor,
    rotary: tl.tensor,
    mask: tl.tensor,
    columns: tl.tensor,
    positions: tl.tensor,
    shape: tl.constexpr,
) -> None:
    """Compute the gradient of `tiled_forward`; every element of it is written.

    Args:
        qkv: as in the forward pass.
        out_grad: [q, columns, a*d].
        qkv_grad: like qkv, written.
        rotary: as in the forward pass.
        mask: as in the forward pass.
        columns: n*b.
        positions: q.
        shape: a KernelShape.
    """
    repeats: tl.constexpr = shape.heads // shape.groups
    head_dim: tl.constexpr = shape.head_dim
    group_width: tl.constexpr = (repeats + 2) * head_dim
    local, position, column, group, valid = _rows(columns, positions, shape)
    row = position.to(tl.int64) * columns + column
    at = row * (shape.groups * group_width) + group * group_width
    out_at = row * (shape.heads * head_dim) + group * (repeats * head_dim)

    seen = _seen_keys(mask, position, column, columns, valid)
    same, visible = _visible(local, position, seen, shape)
    rows: tl.constexpr = shape.rows
    zero = tl.zeros([rows, _lanes_of(shape)], tl.float32)
    key_a, key_b, value_a, value_b = zero, zero, zero, zero  # gradients
    key_at = at + repeats * head_dim
    angles = _angles(rotary, position, positions, shape)
    key = _turn(_load(qkv + key_at, valid, shape, shape.rotated), angles, False)
    value = _load(qkv + key_at + head_dim, valid, shape, 0)
    for head in range(repeats):
        if qkv.dtype.element_ty == tl.float32:
            # As in the forward pass.
            key = _turn(_load(qkv + key_at, valid, shape, shape.rotated), angles, False)
            value = _load(qkv + key_at + head_dim, valid, shape, 0)
        query = _load(qkv + at + head * head_dim, valid, shape, shape.rotated)
        query = _turn(query, angles, False)
        change = _load(out_grad + out_at + head * head_dim, valid, shape, 0)
        weights, sees = _softmax(query, key, same, visible, shape)
        a, b = _mix(tl.trans(weights), change)
        if repeats == 1:
            _store(qkv_grad + key_at + head_dim, (a, b), valid, shape, 0)
        else:
            value_a, value_b = value_a + a, value_b + b
        slopes = _product(change, value)
        slopes = weights * (slopes - tl.sum(weights * slopes, axis=1)[:, None])
        slopes = slopes * tl.where(sees, shape.scale, 0.0)[:, None]
        back = _angles(rotary, position, positions, shape)  # again: they need not be held
        query_grad = _turn(_mix(slopes, key), back, True)
        _store(qkv_grad + at + head * head_dim, query_grad, valid, shape, shape.rotated)
        a, b = _mix(tl.trans(slopes), query)
        key_a, key_b = key_a + a, key_b + b
    angles = _angles(rotary, position, positions, shape)
    key_grad = _turn((key_a, key_b), angles, True)
    _store(qkv_grad + key_at, key_grad, valid, shape, shape.rotated)
    if repeats > 1:
        _store(qkv_grad + key_at + head_dim, (value_a, value_b), valid, shape, 0)
