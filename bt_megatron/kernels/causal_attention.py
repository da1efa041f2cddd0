# SPDX-License-Identifier: Apache-2.0
"""Causal attention over long sequences: torch's, with gradients that are the same every time.

FlashAttention 2 (Dao, 2307.08691) adds gradients of queries in the order of arrival, unless
torch's global switch for deterministic algorithms is on while its backward pass runs. That
switch concerns every other operation too, so it is turned on for that call only.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

LONG = 1024
"""Queries from which cuDNN is the faster one (docs/benchmarks/attention.json)."""
ANY_ORDER = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def causal_attention(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float | None, fixed_order: bool
) -> Tensor:
    """Attend from the last rows of a sequence to all rows up to each of them.

    Args:
        query: [l, b, a, d], the last l of s rows.
        key: [s, b, groups, d].
        value: like key.
        scale: factor of the scores; none: d ** -0.5.
        fixed_order: whether the backward pass gives the same bits every time on the same GPU;
            elsewhere it always does.

    Returns:
        [l, b, a, d].

    Comm: none.
    """
    query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))  # [b, a, s, d]
    is_half = query.is_cuda and query.dtype in (torch.bfloat16, torch.float16)
    if is_half and fixed_order:
        out = _FixedOrder.apply(query, key, value, scale)
    else:
        out = _any_order(query, key, value, scale)
    return out.permute(2, 0, 1, 3)


def _any_order(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    length, seen = query.shape[2], key.shape[2]
    fastest: Any = contextlib.nullcontext()
    if query.is_cuda and length >= LONG:
        fastest = sdpa_kernel(ANY_ORDER, set_priority=True)
    with fastest:
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if length == seen else causal_lower_right(length, seen),
            is_causal=length == seen,
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )


class _FixedOrder(torch.autograd.Function):
    """FlashAttention on [b, a, s, d]; a mask that is causal ends at the last key."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        out, *rest = torch.ops.aten._scaled_dot_product_flash_attention(
            query, key, value, 0.0, True, False, scale=scale
        )
        log_sums, starts, key_starts, longest, longest_key, seed, offset, _ = rest
        ctx.save_for_backward(query, key, value, out, log_sums, starts, key_starts, seed, offset)
        ctx.sizes, ctx.scale = (longest, longest_key), scale
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, log_sums, starts, key_starts, seed, offset = ctx.saved_tensors
        with _deterministic_algorithms():
            gradients = torch.ops.aten._scaled_dot_product_flash_attention_backward(
                gradient,
                query,
                key,
                value,
                out,
                log_sums,
                starts,
                key_starts,
                *ctx.sizes,
                0.0,
                True,
                seed,
                offset,
                scale=ctx.scale,
            )
        return (*gradients, None)


@contextlib.contextmanager
def _deterministic_algorithms() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = False  # else every new tensor is written
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = fill
