# SPDX-License-Identifier: Apache-2.0
"""Relative position bias of the T5 decoder (Raffel et al. 2020, section 2.1)."""

import math

import torch
from megatron.core import parallel_state, tensor_parallel
from torch import Tensor

from bt_megatron.config.geometry import T5_BUCKETS

MAX_DISTANCE = 128
"""From here on all distances share the last bucket."""


def causal_buckets(positions: int) -> Tensor:
    """Return the bucket of each (query, key) pair: exact up to 16, then logarithmic.

    Args:
        positions: q.

    Returns:
        [q, q] int64.
    """
    index = torch.arange(positions)
    distance = (index[:, None] - index[None, :]).clamp(min=0)
    exact = T5_BUCKETS // 2
    growth = torch.log(distance.clamp(min=1).float() / exact) / math.log(MAX_DISTANCE / exact)
    far = (exact + (growth * (T5_BUCKETS - exact)).long()).clamp(max=T5_BUCKETS - 1)
    return torch.where(distance < exact, distance, far)


class RelativeBias(torch.nn.Module):
    """One learned number per bucket and head, shared by all layers."""

    def __init__(self, heads: int, dtype: torch.dtype) -> None:
        """Build the table.

        Args:
            heads: a, over all tensor-parallel ranks.
            dtype: data type of the table.
        """
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(T5_BUCKETS, heads, dtype=dtype))

    def forward(self, positions: int) -> Tensor:
        """Return the bias of this rank's heads.

        Args:
            positions: q.

        Returns:
            [a/t, q, q].

        Comm: none forward; all-reduce of the table's gradient over the tp group backward.
        """
        whole = tensor_parallel.copy_to_tensor_model_parallel_region(self.weight)
        ranks = parallel_state.get_tensor_model_parallel_world_size()
        local = whole.chunk(ranks, dim=1)[parallel_state.get_tensor_model_parallel_rank()]
        return local[causal_buckets(positions).to(local.device)].permute(2, 0, 1)
