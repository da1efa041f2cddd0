# SPDX-License-Identifier: Apache-2.0
"""Core attention (after the projections and rotary).

`CausalAttention` serves the block decoder and vanilla models: few long
sequences. `FoldedAttention` serves the token decoder and the RoBERTa encoder:
every block is a short sequence of its own. Shapes: see shapes.py.
"""

import contextlib
import math
from typing import Any

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.transformer.module import MegatronModule
from torch import Tensor
from torch.nn import functional as F

from bt_megatron.kernels.causal_attention import causal_attention
from bt_megatron.model.transformer_config import StackConfig
from bt_megatron.parallel.context import gather_in_order, own_chunks


class CausalAttention(MegatronModule):
    """Causal attention over the rows of a sequence, optionally without some keys."""

    def __init__(
        self, config: StackConfig, *, softmax_scale: float | None = None, **_unused: Any
    ) -> None:
        """Take what Megatron's attention hands over; layer number and groups are not needed.

        Args:
            config: Megatron config of the stack.
            softmax_scale: factor of the scores; none: head width ** -0.5.
        """
        super().__init__(config=config)
        self.softmax_scale = softmax_scale

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        /,
        **_unused: Any,
    ) -> Tensor:
        """Attend.

        Args:
            query: [s, b, a/t, d].
            key: [s, b, groups/t, d].
            value: [s, b, groups/t, d].
            attention_mask: [b, s] bool, False where a position is padding and must not be seen;
                a position always sees itself, so that no row is without keys. None: all are seen.

        Returns:
            [s, b, a/t * d].

        Comm: none; under context parallelism all-gathers of keys and values over the cp group
        (reduce-scatters of their gradients backward). s is then this rank's share.
        """
        length, rows = query.shape[:2]
        if self.config.context_parallel_size > 1:
            assert attention_mask is None, "training data has no blocks of pads only"
            out = self._attend_by_chunk(query, gather_in_order(key), gather_in_order(value))
        elif attention_mask is None:
            out = self._attend(query, key, value)
        else:
            out = self._attend_masked(query, key, value, self._visible(attention_mask))
        return out.reshape(length, rows, -1)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return causal_attention(
            query,
            key,
            value,
            scale=self.softmax_scale,
            fixed_order=self.config.fixed_order and self.training,
        )

    def _attend_masked(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))  # [b, a, s, d]
        out = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            scale=self.softmax_scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return out.permute(2, 0, 1, 3)  # [s, b, a, d]

    def _attend_by_chunk(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend from this rank's two chunks [s/c, b, a, d] to what lies before them [s, ...]."""
        size = parallel_state.get_context_parallel_world_size()
        length = keys.shape[0] // (2 * size)
        outs = []
        mine = own_chunks(parallel_state.get_context_parallel_rank(), size)
        for chunk, part in zip(mine, query.chunk(2), strict=True):
            seen = (chunk + 1) * length
            outs.append(self._attend(part, keys[:seen], values[:seen]))
        return torch.cat(outs)

    @staticmethod
    def _visible(mask: Tensor) -> Tensor:
        length = mask.shape[-1]
        causal = mask.new_ones(length, length).tril()
        itself = torch.eye(length, dtype=torch.bool, device=mask.device)
        return (causal & mask[:, None, :] | itself)[:, None]  # [b, 1, s, s]


class FoldedAttention(MegatronModule):
    """Attention inside each block; the rows of the hidden states are position * n + block.

    Scores are one explicit product: fused kernels refuse more than 65,535
    batch x heads, and a micro batch of the 1.2B model has 131,072.
    """

    def __init__(
        self, config: StackConfig, *, softmax_scale: float | None = None, **_unused: Any
    ) -> None:
        """Take what Megatron's attention hands over.

        Args:
            config: Megatron config of the stack; `fold_positions` is q.
            softmax_scale: factor of the scores; none: head width ** -0.5.
        """
        super().__init__(config=config)
        assert config.fold_positions, "a folded stack knows its positions per block"
        self.positions = config.fold_positions
        self.softmax_scale = softmax_scale

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        /,
        *,
        attention_bias: Tensor | None = None,
        **_unused: Any,
    ) -> Tensor:
        """Attend within blocks.

        Args:
            query: [q*n, b, a/t, d].
            key: [r*n, b, groups/t, d]; r = q for self-attention.
            value: like key.
            attention_mask: [q, n*b] bool, False where a position is padding (as a key).
                None: all are seen. Used for self-attention only.
            attention_bias: [a/t, q, q] added to the scores (T5), self-attention only.

        Returns:
            [q*n, b, a/t * d].

        Comm: none.
        """
        rows, batch = query.shape[:2]
        blocks = rows // self.positions
        folded_query = self._fold(query, blocks)
        folded_key = self._repeat_groups(self._fold(key, blocks), query.shape[2])
        folded_value = self._repeat_groups(self._fold(value, blocks), query.shape[2])
        scale = self.softmax_scale or 1 / math.sqrt(query.shape[-1])
        scores = torch.matmul(folded_query * scale, folded_key.transpose(-1, -2))
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        if attention_bias is not None:
            scores = scores + attention_bias
        scores = self._hide(scores, attention_mask)  # [n*b, a, q, r]
        weights = self._drop(scores.softmax(dim=-1).to(folded_value.dtype))
        out = torch.matmul(weights, folded_value)  # [n*b, a, q, d]
        return out.permute(2, 0, 1, 3).reshape(rows, batch, -1)

    @staticmethod
    def _fold(tensor: Tensor, blocks: int) -> Tensor:
        rows, batch, heads, width = tensor.shape
        folded = tensor.reshape(rows // blocks, blocks * batch, heads, width)  # [q, n*b, a, d]
        return folded.permute(1, 2, 0, 3)  # [n*b, a, q, d]

    @staticmethod
    def _repeat_groups(tensor: Tensor, heads: int) -> Tensor:
        repeats = heads // tensor.shape[1]
        return tensor if repeats == 1 else tensor.repeat_interleave(repeats, dim=1)

    def _hide(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        # The lowest finite value, not -inf: as in the reference a query without any
        # key (a block of pads) averages over all of them instead of giving NaN. A pad
        # is hidden from itself too.
        lowest = torch.finfo(scores.dtype).min
        if mask is not None:
            scores = scores.masked_fill(~mask.transpose(0, 1)[:, None, None, :], lowest)
        if self.config.bidirectional:
            return scores
        causal = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        return scores.masked_fill(~causal, lowest)

    def _drop(self, weights: Tensor) -> Tensor:
        rate = self.config.attention_dropout
        if not self.training or rate == 0:
            return weights
        forked = contextlib.nullcontext()
        if not self.config.sequence_parallel:
            forked = tensor_parallel.get_cuda_rng_tracker().fork()
        with forked:
            return F.dropout(weights, rate)


class FoldedCrossAttention(FoldedAttention):
    """Attention from the positions of a block to its own context vectors, without a mask."""

    def _hide(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        return scores
