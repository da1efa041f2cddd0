# SPDX-License-Identifier: Apache-2.0
"""Shares of a sequence: together they are the whole, in order, and gradients find their way."""

import pytest
import torch
from torch import Tensor

from bt_megatron.config.schema import LayoutConfig
from bt_megatron.parallel.context import gather_in_order, own_chunks, own_positions, own_share
from bt_megatron.parallel.groups import build_groups
from tests.ranks import run_ranks


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_every_chunk_has_one_owner_and_equal_work(size: int) -> None:
    owned = [own_chunks(rank, size) for rank in range(size)]
    assert sorted(chunk for pair in owned for chunk in pair) == list(range(2 * size))
    assert {first + second for first, second in owned} == {2 * size - 1}


def shares(size: int, unit: int) -> tuple[Tensor, Tensor, Tensor]:
    build_groups(LayoutConfig(cp=size), seed=0)
    tokens = torch.arange(2 * 2 * size * 3 * unit).view(2, -1)  # [b, s]
    mine = own_share(tokens, unit=unit)
    places = own_positions(mine.shape[1], torch.device("cpu"))
    assert torch.equal(mine, tokens[:, places])
    rows = places.double()[:, None].requires_grad_()
    whole = gather_in_order(rows)
    (whole * torch.arange(len(whole))[:, None]).sum().backward()
    assert rows.grad is not None
    return mine, whole.detach(), rows.grad / places[:, None].clamp(min=1)


@pytest.mark.parametrize("unit", [1, 4])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_shares_make_the_whole(size: int, unit: int) -> None:
    results = run_ranks(shares, size, size, unit)
    length = 2 * size * 3 * unit
    tokens = torch.cat([mine[0] for mine, _, _ in results])
    assert sorted(tokens.tolist()) == list(range(length))
    for _, whole, gradient in results:
        assert whole[:, 0].tolist() == list(range(length))
        # Every rank's copy of the sum reaches the owner: its weight, once per rank.
        assert set(gradient.flatten().tolist()) <= {0.0, float(size)}
