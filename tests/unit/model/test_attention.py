# SPDX-License-Identifier: Apache-2.0
"""Core attention against sums written out, position by position, in float64."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import tests.ranks  # noqa: F401  imports Megatron for machines without CUDA
from bt_megatron.model.attention import CausalAttention, FoldedAttention, FoldedCrossAttention

ATOL = 1e-12


def stack(**changes: object) -> SimpleNamespace:
    settings = {
        "fold_positions": 5,
        "bidirectional": False,
        "attention_dropout": 0.0,
        "context_parallel_size": 1,
        "fixed_order": True,
    }
    return SimpleNamespace(**settings | changes)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def attend(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None = None) -> Tensor:
    """One query [d] over keys [m, d]."""
    scores = keys @ query / math.sqrt(len(query))
    return (scores if bias is None else scores + bias).softmax(0) @ values


@pytest.mark.parametrize("groups", [4, 2, 1])
def test_causal_attention(groups: int) -> None:
    torch.manual_seed(0)
    query, key, value = random(6, 2, 4, 8), random(6, 2, groups, 8), random(6, 2, groups, 8)
    out = CausalAttention(stack())(query, key, value, None).view(6, 2, 4, 8)
    for s, b, head in ((0, 0, 0), (3, 1, 2), (5, 0, 3)):
        group = head // (4 // groups)
        expected = attend(query[s, b, head], key[: s + 1, b, group], value[: s + 1, b, group])
        torch.testing.assert_close(out[s, b, head], expected, atol=ATOL, rtol=0)


def test_causal_attention_leaves_pads_out_and_lets_a_pad_see_itself() -> None:
    torch.manual_seed(0)
    query, key, value = random(6, 1, 1, 8), random(6, 1, 1, 8), random(6, 1, 1, 8)
    mask = torch.tensor([[False, False, True, True, False, True]])
    out = CausalAttention(stack())(query, key, value, mask)
    torch.testing.assert_close(out[0, 0], value[0, 0, 0], atol=ATOL, rtol=0)
    seen = torch.tensor([2, 3, 5])
    expected = attend(query[5, 0, 0], key[seen, 0, 0], value[seen, 0, 0])
    torch.testing.assert_close(out[5, 0], expected, atol=ATOL, rtol=0)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("groups", [4, 2])
def test_folded_attention_stays_inside_its_block(groups: int, bidirectional: bool) -> None:
    torch.manual_seed(0)
    positions, blocks, batch = 5, 3, 2
    shape = (positions * blocks, batch)
    query, key, value = random(*shape, 4, 8), random(*shape, groups, 8), random(*shape, groups, 8)
    bias = random(4, positions, positions)
    mask = torch.rand(positions, blocks * batch) > 0.3
    mask[0] = True
    attention = FoldedAttention(stack(bidirectional=bidirectional))
    out = attention(query, key, value, mask, attention_bias=bias).view(*shape, 4, 8)
    for position, block, b, head in ((0, 0, 0, 0), (2, 1, 1, 3), (4, 2, 0, 2)):
        last = positions if bidirectional else position + 1
        seen = [i for i in range(last) if mask[i, block * batch + b]]
        rows = [i * blocks + block for i in seen]
        group = head // (4 // groups)
        expected = attend(
            query[position * blocks + block, b, head],
            key[rows, b, group],
            value[rows, b, group],
            bias[head, position, seen],
        )
        got = out[position * blocks + block, b, head]
        torch.testing.assert_close(got, expected, atol=ATOL, rtol=0)


def test_cross_attention_sees_all_vectors_of_its_block() -> None:
    torch.manual_seed(0)
    blocks, vectors = 3, 4
    query = random(5 * blocks, 1, 2, 8)
    key, value = random(vectors * blocks, 1, 2, 8), random(vectors * blocks, 1, 2, 8)
    out = FoldedCrossAttention(stack())(query, key, value, None).view(-1, 1, 2, 8)
    rows = [i * blocks + 1 for i in range(vectors)]
    expected = attend(query[1, 0, 1], key[rows, 0, 1], value[rows, 0, 1])
    torch.testing.assert_close(out[1, 0, 1], expected, atol=ATOL, rtol=0)


def test_a_block_of_pads_gives_numbers() -> None:
    query = random(5, 1, 1, 8)
    mask = torch.zeros(5, 1, dtype=torch.bool)
    out = FoldedAttention(stack())(query, query, query, mask)
    assert out.isfinite().all()
