# SPDX-License-Identifier: Apache-2.0
"""Which kernel and tile computes which attention: a table, tuned on the GPU.

`python -m tools.bench_token_attention --tune` measures the candidates and prints
the best. Letters of shapes: bt_megatron/model/shapes.py.
"""

from dataclasses import dataclass
from typing import Literal

HEAD_DIMS = (16, 32, 64, 128)
MAX_POSITIONS = 64
UNROLLED_POSITIONS = 8
"""Most positions for which the unrolled kernel is used: its code grows with their square."""
MOST_UNROLLED = 12
"""Most positions for which tuning tries it."""


@dataclass(frozen=True, slots=True)
class KernelShape:
    """What is known when a kernel is compiled; it is compiled anew for each value."""

    positions: int
    """q; 0 in the tiled kernel, which takes it as an argument."""
    heads: int
    groups: int
    head_dim: int
    rotated: int
    """Dimensions of a head that rotary turns."""
    scale: float
    """Factor of the scores."""
    causal: bool
    rows: int
    """Rows of the tile of one program."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """How the work is cut into programs."""

    kind: Literal["unrolled", "tiled"]
    """unrolled: vectors of a few positions in registers; tiled: products on tensor cores."""
    rows: int
    """unrolled: sequences per program; tiled: positions of whole sequences per program."""
    warps: int


_FORWARD: dict[tuple[int, int], Tiling] = {}
_BACKWARD: dict[tuple[int, int], Tiling] = {}
"""By (q, d), where a measurement beat the rule below."""


def choose_tiling(positions: int, head_dim: int, *, backward: bool) -> Tiling:
    """Return the tile for q positions and heads of width d."""
    measured = (_BACKWARD if backward else _FORWARD).get((positions, head_dim))
    if measured is not None:
        return measured
    if positions <= UNROLLED_POSITIONS:
        # 4 lanes are loads of 8 bytes in bf16; with more values in registers, 2.
        return unrolled(head_dim, lanes=2 if backward or positions > 5 else 4, warps=4)
    return Tiling("tiled", 64, 8 if backward and head_dim == 128 else 4)


def unrolled(head_dim: int, *, lanes: int, warps: int) -> Tiling:
    """Return the unrolled tile in which a thread holds so many lanes of each half."""
    return Tiling("unrolled", max(1, 32 * warps * lanes * 2 // head_dim), warps)


def candidate_tilings(positions: int, head_dim: int, *, backward: bool) -> list[Tiling]:
    """List the tiles that tuning tries; unrolled ones whose vectors fit into registers."""
    vectors = 4 if backward else 2  # of each position that are live at once, each two halves
    few = [
        unrolled(head_dim, lanes=lanes, warps=warps)
        for lanes in (1, 2, 4, 8)
        for warps in (2, 4)
        if positions <= MOST_UNROLLED and 2 * vectors * positions * lanes <= 200
    ]
    whole = [
        Tiling("tiled", rows, warps)
        for rows in (16, 32, 64, 128)
        for warps in (2, 4, 8)
        if rows >= positions and 8 <= rows // warps <= 32
    ]
    return few + whole
