# SPDX-License-Identifier: Apache-2.0
"""A vocabulary shared by ranks gives the losses and gradients of one rank, to rounding."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from bt_megatron.kernels.linear_cross_entropy import linear_cross_entropy
from tests.ranks import run_ranks

ROWS, WIDTH = 10, 8
TARGETS = {
    "mixed": lambda vocab: torch.arange(ROWS) * 7 % vocab,
    "all-on-the-first-rank": lambda vocab: torch.zeros(ROWS, dtype=torch.int64),
    "all-on-the-last-rank": lambda vocab: torch.full((ROWS,), vocab - 1),
}


def data(vocab: int, size: int, kind: str, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    columns = -(-vocab // size) * size
    hidden = torch.randn(ROWS, WIDTH, dtype=torch.float64) * scale
    return hidden, torch.randn(columns, WIDTH, dtype=torch.float64), TARGETS[kind](vocab)


def on_a_rank(
    vocab: int, kind: str, scale: float, chunk_rows: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    group = dist.group.WORLD
    size, rank = group.size(), group.rank()
    hidden, weight, targets = data(vocab, size, kind, scale)
    hidden.requires_grad_()
    shard = weight.chunk(size)[rank].clone().requires_grad_()
    losses = linear_cross_entropy(
        hidden, shard, targets, vocab_size=vocab, group=group, chunk_rows=chunk_rows
    )
    (losses * torch.linspace(-1, 2, ROWS)).sum().backward()
    dist.all_reduce(hidden.grad)  # the caller's part
    return losses.detach(), hidden.grad, shard.grad


@pytest.mark.parametrize("chunk_rows", [None, 4], ids=["whole", "chunks"])
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("size", [2, 3])
def test_shards_give_the_losses_of_one_rank(
    size: int, kind: str, chunk_rows: int | None
) -> None:
    vocab, scale = 22, 30.0  # logits of hundreds: shards differ by more than exp() can hold
    hidden, weight, targets = data(vocab, size, kind, scale)
    hidden.requires_grad_()
    weight.requires_grad_()
    expected = F.cross_entropy((hidden @ weight.t())[:, :vocab], targets, reduction="none")
    (expected * torch.linspace(-1, 2, ROWS)).sum().backward()

    results = run_ranks(on_a_rank, size, vocab, kind, scale, chunk_rows)

    for losses, hidden_gradient, _ in results:
        assert torch.equal(losses, results[0][0]), "every rank has the same bits"
        torch.testing.assert_close(losses, expected.detach(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(hidden_gradient, hidden.grad, rtol=1e-11, atol=1e-12)
    gradient = torch.cat([shard for _, _, shard in results])
    torch.testing.assert_close(gradient, weight.grad, rtol=1e-11, atol=1e-12)


def test_a_rank_may_hold_nothing_but_padding() -> None:
    # 4 ids on 3 ranks: 2 + 2 + 0
    hidden, weight, targets = data(4, 3, "mixed", 1.0)
    expected = F.cross_entropy((hidden @ weight.t())[:, :4], targets, reduction="none")
    results = run_ranks(on_a_rank, 3, 4, "mixed", 1.0, 4)
    for losses, gradient, _ in results:
        torch.testing.assert_close(losses, expected, rtol=1e-12, atol=1e-12)
        assert gradient.isfinite().all()
    assert [shard.count_nonzero().item() > 0 for _, _, shard in results] == [True, True, False]
