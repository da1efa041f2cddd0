# SPDX-License-Identifier: Apache-2.0
"""Which kernel and tile computes which attention: a table, tuned on the GPU.

`python -m tools.bench_token_attention --tune` measures the candidates and prints
the best. Letters of shapes: bt_megatron/model/shapes.py.
"""

from dataclasses import dataclass
from typing import Literal

HEAD_DIMS = (16, 32, 64, 128)
MAX_POSITIONS = 64
UNROLLED_POSITIONS = 16
"""Most positions for which the unrolled kernel is offered: its code grows with their square."""


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
    if positions <= (8 if head_dim > 16 else 4):
        # 4 lanes of each half a thread (8 bytes in bf16); 2 where more would spill.
        lanes = 2 if backward or positions > 5 else 4
        return Tiling("unrolled", max(1, 4 * 32 * lanes * 2 // head_dim), 4)
    return Tiling("tiled", 32 if positions <= 16 else 64, 4)


def candidate_tilings(positions: int) -> list[Tiling]:
    """List the tiles that tuning tries."""
    unrolled = [
        Tiling("unrolled", rows, warps)
        for warps in (1, 2, 4, 8)
        for rows in (2, 4, 8, 16, 32)
        if positions <= UNROLLED_POSITIONS and 1 <= rows // warps <= 8
    ]
    tiled = [
        Tiling("tiled", rows, warps)
        for rows in (16, 32, 64, 128)
        for warps in (1, 2, 4, 8)
        if rows >= positions and 16 <= rows // warps * 2 <= 128
    ]
    return unrolled + tiled
