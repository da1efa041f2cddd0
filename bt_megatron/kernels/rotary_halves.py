# SPDX-License-Identifier: Apache-2.0
"""A head as two halves that rotary positions turn into each other, for Triton kernels.

Rotary mixes dimension i < rotated/2 with i + rotated/2. Were a head one tile, its
partner would sit in another thread. So a head is loaded as two tiles of d/2 lanes:

    first   0 .. rotated/2 - 1        and half of the dimensions that are not rotated
    second  rotated/2 .. rotated - 1  and the other half of them

Lane by lane the rotation is then plain arithmetic. Scores are sums over the whole
head, so the order of dimensions does not matter to them, and outputs are stored to
where they belong by the same offsets.
"""

import triton
import triton.language as tl


@triton.jit
def half_offsets(lanes: tl.tensor, head_dim: tl.constexpr, rotated: tl.constexpr):  # noqa: ANN201
    """Return which dimension of a head each lane of the two halves holds.

    Args:
        lanes: 0 .. d/2 - 1, of any shape.
        head_dim: d.
        rotated: dimensions that are rotated, even, at most d.
    """
    if rotated == 0 or rotated == head_dim:
        first, second = lanes, lanes + head_dim // 2
    else:
        is_rotated = lanes < rotated // 2
        first = lanes + tl.where(is_rotated, 0, rotated // 2)
        second = lanes + tl.where(is_rotated, rotated // 2, head_dim // 2)
    return first, second


@triton.jit
def load_halves(pointer: tl.tensor, first: tl.tensor, second: tl.tensor, valid: tl.tensor):  # noqa: ANN201
    """Load both halves of heads as they are stored; zeros where not `valid`."""
    return (
        tl.load(pointer + first, mask=valid, other=0.0),
        tl.load(pointer + second, mask=valid, other=0.0),
    )


@triton.jit
def load_angles(rotary: tl.tensor, at: tl.tensor, table: tl.tensor, within: tl.tensor):  # noqa: ANN201
    """Load cosines and sines; lanes that are not `within` the rotated ones do not turn.

    Args:
        rotary: table [2, q, rotated] of cosines and sines.
        at: offset of each lane in a table.
        table: elements per table, q * rotated.
        within: which lanes turn.
    """
    cos = tl.load(rotary + at, mask=within, other=1.0)
    sin = tl.load(rotary + table + at, mask=within, other=0.0)
    return cos, sin


@triton.jit
def rotate(first: tl.tensor, second: tl.tensor, cos: tl.tensor, sin: tl.tensor):  # noqa: ANN201
    """Turn both halves by the angles; with -sin, back (the gradient)."""
    return first * cos - second * sin, second * cos + first * sin
