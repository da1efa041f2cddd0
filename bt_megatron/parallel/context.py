# SPDX-License-Identifier: Apache-2.0
"""Context parallelism: which blocks (vanilla: tokens) of a sequence this rank computes.

A sequence is cut into 2 * c equal chunks, c the context-parallel size, and rank r
takes chunks r and 2 * c - 1 - r: under a causal mask every rank then has the same
work. The order is Megatron-Core's and Transformer Engine's (zigzag). Only the causal
attention of the block decoder (vanilla: decoder) looks at other ranks' chunks; blocks
of the token decoder do not depend on each other.
"""

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from torch import Tensor


def own_chunks(rank: int, size: int) -> tuple[int, int]:
    """Return the two chunks of a rank, of 2 * size."""
    return rank, 2 * size - 1 - rank


def own_share(rows: Tensor, *, unit: int) -> Tensor:
    """Return this rank's part of a batch.

    Args:
        rows: [b, s] on every rank of the context-parallel group.
        unit: what must not be cut apart: tokens per block, 1 for a vanilla model.

    Returns:
        [b, s/c], the rank's two chunks one after the other.

    Comm: none.
    """
    size = parallel_state.get_context_parallel_world_size()
    if size == 1:
        return rows
    batch, length = rows.shape
    assert length % (2 * size * unit) == 0, "layout_rules.py: chunks are whole blocks"
    chunks = rows.view(batch, 2 * size, -1)
    mine = own_chunks(parallel_state.get_context_parallel_rank(), size)
    return chunks[:, mine].reshape(batch, -1)


def own_positions(count: int, device: torch.device) -> Tensor:
    """Return the places in the whole sequence of this rank's rows.

    Args:
        count: rows on this rank.
        device: of the result.

    Returns:
        [count] int64.

    Comm: none.
    """
    size = parallel_state.get_context_parallel_world_size()
    if size == 1:
        return torch.arange(count, device=device)
    length = count // 2
    first, second = own_chunks(parallel_state.get_context_parallel_rank(), size)
    within = torch.arange(length, device=device)
    return torch.cat((first * length + within, second * length + within))


def gather_in_order(rows: Tensor) -> Tensor:
    """Return the rows of all ranks in the order of the sequence.

    Args:
        rows: [s/c, ...] of this rank.

    Returns:
        [s, ...].

    Comm: all-gather over the cp group; reduce-scatter of the gradient backward.
    """
    size = parallel_state.get_context_parallel_world_size()
    gathered = gather_from_sequence_parallel_region(
        rows.contiguous(), group=parallel_state.get_context_parallel_group()
    )
    chunks = gathered.chunk(2 * size)
    holders = [chunk for rank in range(size) for chunk in own_chunks(rank, size)]
    return torch.cat([chunks[holders.index(chunk)] for chunk in range(2 * size)])
