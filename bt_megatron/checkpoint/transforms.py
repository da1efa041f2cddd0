# SPDX-License-Identifier: Apache-2.0
"""How one canonical tensor corresponds to one or several tensors of another format.

Each transform is exact and has an exact inverse. Letters: shapes.py; E is the
width of the embedder, K the number of its vectors that form a block vector.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Shape = tuple[int, ...]


class Transform(Protocol):
    """Both directions, and the shapes on the other side."""

    def split(self, canonical: Tensor) -> list[Tensor]:
        """Return the other format's tensors."""

    def join(self, official: Sequence[Tensor]) -> Tensor:
        """Return the canonical tensor."""

    def shapes(self, canonical: Shape) -> list[Shape]:
        """Return the shapes of the other format's tensors."""


@dataclass(frozen=True, slots=True)
class Same:
    """The same tensor."""

    def split(self, canonical: Tensor) -> list[Tensor]:
        """Return the tensor."""
        return [canonical]

    def join(self, official: Sequence[Tensor]) -> Tensor:
        """Return the tensor."""
        return official[0]

    def shapes(self, canonical: Shape) -> list[Shape]:
        """Return the shape."""
        return [canonical]


@dataclass(frozen=True, slots=True)
class PointConv:
    """A linear weight [out, in] that is stored as a Conv1d of width 1: [out, in, 1]."""

    def split(self, canonical: Tensor) -> list[Tensor]:
        """Add the last axis."""
        return [canonical.unsqueeze(-1)]

    def join(self, official: Sequence[Tensor]) -> Tensor:
        """Drop the last axis."""
        return official[0].squeeze(-1)

    def shapes(self, canonical: Shape) -> list[Shape]:
        """Return [out, in, 1]."""
        return [(*canonical, 1)]


@dataclass(frozen=True, slots=True)
class BlockConv:
    """A linear weight [g, K*E], input token by token, stored as a Conv1d [g, E, K].

    linear[:, k*E + e] = conv[:, e, k] (reference: embedder projection_layer).
    """

    taps: int
    """K."""

    def split(self, canonical: Tensor) -> list[Tensor]:
        """Return the Conv1d weight."""
        return [canonical.unflatten(1, (self.taps, -1)).transpose(1, 2).contiguous()]

    def join(self, official: Sequence[Tensor]) -> Tensor:
        """Return the linear weight."""
        return official[0].transpose(1, 2).flatten(1).contiguous()

    def shapes(self, canonical: Shape) -> list[Shape]:
        """Return [g, E, K]."""
        return [(canonical[0], canonical[1] // self.taps, self.taps)]


@dataclass(frozen=True, slots=True)
class FusedHeads:
    """Several projections [a*d, ...] fused head by head: head 0's parts, head 1's parts, ...

    Megatron's order with as many key-value heads as heads, for (q, k, v) and (k, v).
    """

    heads: int
    """a."""
    parts: int
    """Number of projections that are fused."""

    def split(self, canonical: Tensor) -> list[Tensor]:
        """Return the separate projections."""
        by_head = canonical.unflatten(0, (self.heads, self.parts, -1))  # [a, parts, d, ...]
        return [by_head[:, part].flatten(0, 1).contiguous() for part in range(self.parts)]

    def join(self, official: Sequence[Tensor]) -> Tensor:
        """Return the fused projection."""
        by_head = [tensor.unflatten(0, (self.heads, -1)) for tensor in official]  # [a, d, ...]
        return torch.stack(by_head, dim=1).flatten(0, 2)

    def shapes(self, canonical: Shape) -> list[Shape]:
        """Return `parts` shapes [a*d, ...]."""
        return [(canonical[0] // self.parts, *canonical[1:])] * self.parts


SAME = Same()
POINT_CONV = PointConv()
