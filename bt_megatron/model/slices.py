# SPDX-License-Identifier: Apache-2.0
"""The token decoder on one part of the blocks after the other, each computed again in backward.

Its blocks do not depend on each other, so memory for activations and logits is that of
one part: a sequence of a million tokens needs no more of it than a short one.
"""

from collections.abc import Callable

import torch
from megatron.core import tensor_parallel
from torch import Tensor


def run_in_slices(
    run: Callable[[Tensor, Tensor, Tensor], Tensor],
    hidden: Tensor,
    targets: Tensor,
    target_mask: Tensor,
    *,
    slices: int,
) -> Tensor:
    """Run a function of blocks on equal parts of them, keeping only the parts' inputs.

    Args:
        run: from rows, targets and target mask of some blocks to losses [b, n*k] or rows.
        hidden: [r*n, b, h], r rows per block with row = position * n + block.
        targets: [b, n, k].
        target_mask: [b, n, k].
        slices: parts; divides n.

    Returns:
        What `run` returns for all blocks at once.

    Comm: those of `run`, once per part, and again in the backward pass.
    """
    blocks = targets.shape[1]
    parts = [
        tensor_parallel.checkpoint(run, False, rows, target, mask)
        for rows, target, mask in zip(
            _split(hidden, blocks, slices),
            targets.chunk(slices, dim=1),
            target_mask.chunk(slices, dim=1),
            strict=True,
        )
    ]
    if parts[0].dim() == 2:  # losses
        return torch.cat(parts, dim=1)
    return _join(parts, blocks // slices)


def _split(hidden: Tensor, blocks: int, slices: int) -> list[Tensor]:
    folded = hidden.view(-1, blocks, *hidden.shape[1:])  # [r, n, b, h]
    return [part.flatten(0, 1) for part in folded.chunk(slices, dim=1)]


def _join(parts: list[Tensor], blocks: int) -> Tensor:
    folded = [part.view(-1, blocks, *part.shape[1:]) for part in parts]
    return torch.cat(folded, dim=1).flatten(0, 1)
