# SPDX-License-Identifier: Apache-2.0
"""Attention inside blocks of a few positions: every vector of a block in registers.

A row of a tile is a sequence: one group of heads of one column (column = block * b +
batch), with the groups of a column side by side, as they lie in memory. The q x q
scores are sums over lanes, one by one, without tensor cores: for a few positions the
work is hidden behind the memory. Each value is read once and written once.

A vector here is a pair of tiles [rows, d/2], see rotary_halves.py; vectors of all
positions are tuples, whose loops are unrolled. Letters of shapes:
bt_megatron/model/shapes.py.
"""
# mypy: disable-error-code="assignment, misc"
# Kernels are in Triton's language: tuples grow in loops that are unrolled.

from typing import Any

import triton
import triton.language as tl

from bt_megatron.kernels.rotary_halves import half_offsets, load_angles, load_halves, rotate

LOWEST = tl.constexpr(-3.4028234663852886e38)
"""Score of a hidden key: float32's lowest finite value, as in FoldedAttention."""
LOG2E = tl.constexpr(1.4426950408889634)


@triton.constexpr_function
def _positions(shape: Any) -> int:
    """Return q in the form that loops need."""
    return shape.positions


@triton.constexpr_function
def _keys_of(position: int, shape: Any) -> int:
    """Return how many keys the query at a position may look at."""
    return position + 1 if shape.causal else shape.positions


@triton.constexpr_function
def _first_query_of(position: int, shape: Any) -> int:
    """Return the first query that may look at the key at a position."""
    return position if shape.causal else 0


@triton.constexpr_function
def _width_of(shape: Any) -> int:
    """Return the elements of a row of the mixed projection: (a + 2*groups) * d."""
    return (shape.heads + 2 * shape.groups) * shape.head_dim


@triton.jit
def _rows(columns: tl.tensor, shape: tl.constexpr) -> Any:
    """Return column, validity and offsets (in the projection, in the output) of each row."""
    width: tl.constexpr = _width_of(shape)
    repeats: tl.constexpr = shape.heads // shape.groups
    head_dim: tl.constexpr = shape.head_dim
    sequence = tl.program_id(0) * shape.rows + tl.arange(0, shape.rows)
    column, group = sequence // shape.groups, sequence % shape.groups
    far = column.to(tl.int64)  # offsets pass 2^31
    at = far * width + group * ((repeats + 2) * head_dim)
    out_at = far * (shape.heads * head_dim) + group * (repeats * head_dim)
    return column, (column < columns)[:, None], at[:, None], out_at[:, None]


@triton.jit
def _load(
    pointer: tl.tensor, valid: tl.tensor, head_dim: tl.constexpr, rotated: tl.constexpr
) -> Any:
    """Load the vector of one position; values and outputs are not `rotated` (0)."""
    lanes = tl.arange(0, head_dim // 2)[None, :]
    first, second = half_offsets(lanes, head_dim, rotated)
    a, b = load_halves(pointer, first, second, valid)
    return a.to(tl.float32), b.to(tl.float32)


@triton.jit
def _store(
    pointer: tl.tensor,
    vector: tl.tensor,
    valid: tl.tensor,
    head_dim: tl.constexpr,
    rotated: tl.constexpr,
) -> None:
    """Store the vector of one position."""
    lanes = tl.arange(0, head_dim // 2)[None, :]
    first, second = half_offsets(lanes, head_dim, rotated)
    tl.store(pointer + first, vector[0].to(pointer.dtype.element_ty), mask=valid)
    tl.store(pointer + second, vector[1].to(pointer.dtype.element_ty), mask=valid)


@triton.jit
def _turn(
    vector: tl.tensor,
    rotary: tl.tensor,
    position: tl.constexpr,
    shape: tl.constexpr,
    back: tl.constexpr,
) -> Any:
    """Rotate the vector of one position, or rotate it back."""
    rotated: tl.constexpr = shape.rotated
    if rotated == 0:
        turned = vector
    else:
        lanes = tl.arange(0, shape.head_dim // 2)[None, :]
        table = shape.positions * rotated
        within = lanes < rotated // 2
        cos, sin = load_angles(rotary, position * rotated + lanes, table, within)
        turned = rotate(vector[0], vector[1], cos, -sin if back else sin)
    return turned


@triton.jit
def _dot(x: tl.tensor, y: tl.tensor) -> Any:
    return tl.sum(x[0] * y[0] + x[1] * y[1], axis=1)


@triton.jit
def _add(total: tl.tensor, factor: tl.tensor, vector: tl.tensor) -> Any:
    """Return total + factor * vector, with a factor for each row."""
    factor = factor[:, None]
    return total[0] + factor * vector[0], total[1] + factor * vector[1]


@triton.jit
def _zero(like: tl.tensor) -> Any:
    return tl.zeros_like(like[0]), tl.zeros_like(like[1])


@triton.jit
def _seen_keys(mask: tl.tensor, column: tl.tensor, columns: tl.tensor, shape: tl.constexpr) -> Any:
    """Load which keys are seen, for each position a vector [rows]; None: all."""
    if mask is None:
        seen = None
    else:
        seen = ()
        at = mask + column
        for _ in tl.static_range(_positions(shape)):
            seen += (tl.load(at, mask=column < columns, other=1) != 0,)
            at += columns
    return seen


@triton.jit
def _blind(seen: tl.tensor, position: tl.constexpr, shape: tl.constexpr) -> Any:
    """Tell which rows see no key at a position; they average over all keys, later ones too."""
    sees = seen[0]
    for j in tl.static_range(1, _keys_of(position, shape)):
        sees = sees | seen[j]
    return sees == 0


@triton.jit
def _softmax(
    query: tl.tensor,
    keys: tl.tensor,
    seen: tl.tensor,
    position: tl.constexpr,
    shape: tl.constexpr,
) -> Any:
    """Return the weights of the keys for one query, for each key a vector [rows].

    Where no key is seen they are meaningless, but finite.
    """
    factor: tl.constexpr = shape.scale * LOG2E
    scores = ()
    for j in tl.static_range(_keys_of(position, shape)):
        score = _dot(query, keys[j]) * factor
        if seen is not None:
            score = tl.where(seen[j], score, LOWEST)
        scores += (score,)
    top = scores[0]
    for j in tl.static_range(1, _keys_of(position, shape)):
        top = tl.maximum(top, scores[j])
    powers = ()
    total = tl.zeros_like(top)
    for j in tl.static_range(_keys_of(position, shape)):
        power = tl.exp2(scores[j] - top)
        total += power
        powers += (power,)
    weights = ()
    share = 1.0 / total
    for j in tl.static_range(_keys_of(position, shape)):
        weights += (powers[j] * share,)
    return weights


@triton.jit(do_not_specialize=["columns"])
def unrolled_forward(
    qkv: tl.tensor,
    out: tl.tensor,
    rotary: tl.tensor,
    mask: tl.tensor,
    columns: tl.tensor,
    shape: tl.constexpr,
) -> None:
    """Attend; a program computes `shape.rows` sequences.

    Args:
        qkv: [q, columns, (a + 2*groups)*d], for each group its queries, key and value.
        out: [q, columns, a*d], written.
        rotary: [2, q, rotated] float32, or None.
        mask: [q, columns] bytes, or None.
        columns: n*b.
        shape: a KernelShape.
    """
    repeats: tl.constexpr = shape.heads // shape.groups
    head_dim: tl.constexpr = shape.head_dim
    column, valid, at, out_at = _rows(columns, shape)
    step = columns.to(tl.int64) * _width_of(shape)
    out_step = columns.to(tl.int64) * (shape.heads * head_dim)

    seen = _seen_keys(mask, column, columns, shape)
    keys, values = (), ()
    for j in tl.static_range(_positions(shape)):
        from_key = qkv + at + (j * step + repeats * head_dim)
        key = _load(from_key, valid, head_dim, shape.rotated)
        keys += (_turn(key, rotary, j, shape, False),)
        values += (_load(from_key + head_dim, valid, head_dim, 0),)
    if seen is not None:
        mean = _zero(values[0])
        share = tl.zeros_like(column).to(tl.float32) + 1.0 / shape.positions
        for j in tl.static_range(_positions(shape)):
            mean = _add(mean, share, values[j])

    for head in range(repeats):
        for i in tl.static_range(_positions(shape)):
            from_query = qkv + at + (i * step + head * head_dim)
            query = _load(from_query, valid, head_dim, shape.rotated)
            query = _turn(query, rotary, i, shape, False)
            weights = _softmax(query, keys, seen, i, shape)
            vector = _zero(query)
            for j in tl.static_range(_keys_of(i, shape)):
                vector = _add(vector, weights[j], values[j])
            if seen is not None:
                blind = _blind(seen, i, shape)[:, None]
                a = tl.where(blind, mean[0], vector[0])
                vector = a, tl.where(blind, mean[1], vector[1])
            to = out + out_at + (i * out_step + head * head_dim)
            _store(to, vector, valid, head_dim, 0)


@triton.jit
def _score_gradients(
    weights: tl.tensor,
    out_grad: tl.tensor,
    values: tl.tensor,
    position: tl.constexpr,
    shape: tl.constexpr,
) -> Any:
    """Return the gradients of one query's products with its keys, like its weights."""
    changes = ()
    expected = tl.zeros_like(weights[0])
    for j in tl.static_range(_keys_of(position, shape)):
        change = _dot(out_grad, values[j])
        expected += weights[j] * change
        changes += (change,)
    gradients = ()
    for j in tl.static_range(_keys_of(position, shape)):
        gradients += (weights[j] * (changes[j] - expected) * shape.scale,)
    return gradients


@triton.jit
def _without_blind(
    weights: tl.tensor, seen: tl.tensor, position: tl.constexpr, shape: tl.constexpr
) -> Any:
    """Return weights with zeros where no key is seen, whose scores have no gradient."""
    blind = _blind(seen, position, shape)
    kept = ()
    for j in tl.static_range(_keys_of(position, shape)):
        kept += (tl.where(blind, 0.0, weights[j]),)
    return kept


@triton.jit
def _sum_over_queries(
    totals: tl.tensor, factors: tl.tensor, vectors: tl.tensor, shape: tl.constexpr
) -> Any:
    """Return for each key its total + the sum over queries of factor * vector."""
    sums = ()
    for j in tl.static_range(_positions(shape)):
        total = totals[j]
        for i in tl.static_range(_first_query_of(j, shape), _positions(shape)):
            total = _add(total, factors[i][j], vectors[i])
        sums += (total,)
    return sums


@triton.jit
def _add_blind(
    totals: tl.tensor, out_grads: tl.tensor, seen: tl.tensor, shape: tl.constexpr
) -> Any:
    """Return gradients of values with the part of queries that averaged over all keys."""
    part = _zero(totals[0])
    for i in tl.static_range(_positions(shape)):
        share = tl.where(_blind(seen, i, shape), 1.0 / shape.positions, 0.0)
        part = _add(part, share, out_grads[i])
    sums = ()
    for j in tl.static_range(_positions(shape)):
        sums += ((totals[j][0] + part[0], totals[j][1] + part[1]),)
    return sums


@triton.jit(do_not_specialize=["columns"])
def unrolled_backward(
    qkv: tl.tensor,
    out_grad: tl.tensor,
    qkv_grad: tl.tensor,
    rotary: tl.tensor,
    mask: tl.tensor,
    columns: tl.tensor,
    shape: tl.constexpr,
) -> None:
    """Compute the gradient of `unrolled_forward`; every element of it is written.

    Args:
        qkv: as in the forward pass.
        out_grad: [q, columns, a*d].
        qkv_grad: like qkv, written.
        rotary: as in the forward pass.
        mask: as in the forward pass.
        columns: n*b.
        shape: a KernelShape.
    """
    repeats: tl.constexpr = shape.heads // shape.groups
    head_dim: tl.constexpr = shape.head_dim
    column, valid, at, out_at = _rows(columns, shape)
    step = columns.to(tl.int64) * _width_of(shape)
    out_step = columns.to(tl.int64) * (shape.heads * head_dim)

    seen = _seen_keys(mask, column, columns, shape)
    keys, values, key_grads, value_grads = (), (), (), ()
    for j in tl.static_range(_positions(shape)):
        from_key = qkv + at + (j * step + repeats * head_dim)
        key = _load(from_key, valid, head_dim, shape.rotated)
        keys += (_turn(key, rotary, j, shape, False),)
        values += (_load(from_key + head_dim, valid, head_dim, 0),)
        key_grads += (_zero(values[0]),)
        value_grads += (_zero(values[0]),)

    for head in range(repeats):
        queries, out_grads, weights, score_grads = (), (), (), ()
        for i in tl.static_range(_positions(shape)):
            from_query = qkv + at + (i * step + head * head_dim)
            query = _load(from_query, valid, head_dim, shape.rotated)
            queries += (_turn(query, rotary, i, shape, False),)
            from_out = out_grad + out_at + (i * out_step + head * head_dim)
            out_grads += (_load(from_out, valid, head_dim, 0),)
        for i in tl.static_range(_positions(shape)):
            row = _softmax(queries[i], keys, seen, i, shape)
            if seen is not None:
                row = _without_blind(row, seen, i, shape)
            weights += (row,)
            score_grads += (_score_gradients(row, out_grads[i], values, i, shape),)
        value_grads = _sum_over_queries(value_grads, weights, out_grads, shape)
        if seen is not None:
            value_grads = _add_blind(value_grads, out_grads, seen, shape)
        key_grads = _sum_over_queries(key_grads, score_grads, queries, shape)
        for i in tl.static_range(_positions(shape)):
            vector = _zero(queries[0])
            for j in tl.static_range(_keys_of(i, shape)):
                vector = _add(vector, score_grads[i][j], keys[j])
            to = qkv_grad + at + (i * step + head * head_dim)
            vector = _turn(vector, rotary, i, shape, True)
            _store(to, vector, valid, head_dim, shape.rotated)

    for j in tl.static_range(_positions(shape)):
        to = qkv_grad + at + (j * step + repeats * head_dim)
        key_grad = _turn(key_grads[j], rotary, j, shape, True)
        _store(to, key_grad, valid, head_dim, shape.rotated)
        _store(to + head_dim, value_grads[j], valid, head_dim, 0)
