# SPDX-License-Identifier: Apache-2.0
"""Output layer and cross entropy in one, a chunk of rows at a time. Shapes: model/shapes.py.

Logits are the largest tensor of the model: 16 x 2048 tokens of 50,304 ids are 3.3 GB in bf16
and 6.6 GB in fp32. Here they exist in the compute type only, one chunk of them, in a buffer
that is turned into their gradient in place. Sums over them are taken in fp32 registers.

The last chunk is still in the buffer when the backward pass starts; the others are computed
again. So one chunk for all rows costs no work twice, and c chunks cost (1 - 1/c) of a fourth
product on top of three (2 * rows * h * v operations each), for 1/c of the memory. By arithmetic,
for rows = 32,768 and h = 1,024 on an H100 (650 TFLOP/s, 3 TB/s): products 15.6 ms, logits read once
and rewritten once 3.3 ms, all logits again 5.2 ms, or 2.4 % of a step at 150,000 tokens/s. Taking
the gradient in the forward pass, as kernels for one GPU do, would save those for an fp32 weight
gradient (4 * v * h bytes) kept between the passes. But it needs rows that share one upstream
gradient, which ours, masked and divided later, do not, and it is wasted in evaluation.

Why no library's kernel: Megatron-Core 0.19.2 fuses the cross entropy but not the product before
it, and keeps fp32 logits; Liger's and other single-GPU kernels know no sharded vocabulary, and
take the gradient in the forward pass.

With a sharded vocabulary each rank reduces its own columns, and the ranks exchange three numbers
a row, once for all chunks, and add them in rank order.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from bt_megatron.kernels.cross_entropy import (
    VocabShard,
    logits_to_gradient_,
    row_statistics,
    statistics_dtype,
)
from bt_megatron.kernels.weight_gradient import WeightGradient


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    vocab_size: int,
    group: dist.ProcessGroup | None = None,
    chunk_rows: int | None = None,
    into_main_grad: bool = False,
) -> Tensor:
    """Return the cross entropy of each target under softmax(hidden @ weight^T).

    Losses may be masked and weighted afterwards: the backward pass takes any upstream gradient.

    Args:
        hidden: [rows, h], the same on every rank of the group. Its gradient is the part that
            comes from this rank's columns: the caller adds up the ranks (Megatron's
            copy_to_tensor_model_parallel_region, or the gather of sequence parallelism).
        weight: [v/t, h], this rank's rows, equally many on each rank.
        targets: [rows] int64 ids, the same on every rank. An id outside of [0, vocab_size) has
            no probability: its loss is infinite.
        vocab_size: the true size; rows of the weight from there on are padding.
        group: the ranks that share the vocabulary, in order; none: this one has all of it.
        chunk_rows: rows of logits computed at a time; none: all at once.
        into_main_grad: add the weight's gradient to `weight.main_grad`, if it has one, as
            Megatron's fused accumulation does. Only for a weight that nothing else uses.

    Returns:
        [rows] in nats, fp32 (fp64 for fp64 hidden states).

    Comm: forward, an all-gather of [rows, 3] over the group; backward, none.
    """
    size, rank = (1, 0) if group is None else (group.size(), group.rank())
    local = len(weight)
    assert hidden.dim() == 2, hidden.shape
    assert targets.shape == hidden.shape[:1], (targets.shape, hidden.shape)
    assert vocab_size <= size * local, (vocab_size, size, local)
    first = rank * local
    shard = VocabShard(first, max(0, min(local, vocab_size - first)))
    chunks = _chunks(len(hidden), chunk_rows)
    return _LinearCrossEntropy.apply(
        hidden, weight, targets.contiguous(), shard, group if size > 1 else None, chunks,
        into_main_grad,
    )  # fmt: skip


class _LinearCrossEntropy(torch.autograd.Function):
    """See `linear_cross_entropy`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        shard: VocabShard,
        group: dist.ProcessGroup | None,
        chunks: Sequence[slice],
        into_main_grad: bool,
    ) -> Tensor:
        local = hidden.new_empty((len(hidden), 3), dtype=statistics_dtype(hidden.dtype))
        buffer = _logits_buffer(hidden, weight, chunks)  # [chunk, v/t]
        for rows in chunks:
            logits = _product(hidden[rows], weight, buffer)
            local[rows] = row_statistics(logits, targets[rows], shard)
        maximum, log_sum, chosen = _over_shards(local, group)
        ctx.save_for_backward(hidden, weight, targets, torch.stack((maximum, log_sum), dim=1))
        ctx.shard, ctx.chunks, ctx.into_main_grad = shard, chunks, into_main_grad
        ctx.buffer = buffer  # with the logits of the last chunk
        return log_sum - (chosen - maximum)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, normalisers = ctx.saved_tensors
        factors = torch.cat((normalisers, upstream[:, None].to(normalisers.dtype)), dim=1)
        needs_hidden, needs_weight, *others = ctx.needs_input_grad
        hidden_gradient = torch.empty_like(hidden) if needs_hidden else None
        weight_gradient = None
        if needs_weight:
            weight_gradient = WeightGradient(
                weight, into_main_grad=ctx.into_main_grad, products=len(ctx.chunks)
            )
        buffer, ctx.buffer = ctx.buffer, None
        is_computed = buffer is not None  # not if autograd runs this a second time
        if buffer is None:
            buffer = _logits_buffer(hidden, weight, ctx.chunks)
        for rows in reversed(ctx.chunks):
            logits = buffer[: rows.stop - rows.start]
            if not is_computed:
                logits = _product(hidden[rows], weight, buffer)
            is_computed = False
            gradient = logits_to_gradient_(logits, targets[rows], factors[rows], ctx.shard)
            if hidden_gradient is not None:
                torch.mm(gradient, weight, out=hidden_gradient[rows])
            if weight_gradient is not None:
                weight_gradient.add(gradient, hidden[rows])
        return (
            hidden_gradient,
            weight_gradient.for_autograd() if weight_gradient else None,
            *(None for _ in others),
        )


def _chunks(rows: int, chunk_rows: int | None) -> tuple[slice, ...]:
    """Cut rows into chunks of `chunk_rows`, the last one possibly shorter."""
    step = max(1, rows) if chunk_rows is None else chunk_rows
    return tuple(slice(start, min(start + step, rows)) for start in range(0, rows, step))


def _logits_buffer(hidden: Tensor, weight: Tensor, chunks: Sequence[slice]) -> Tensor:
    """Return memory for the logits of the largest chunk, [chunk, v/t]."""
    return hidden.new_empty((chunks[0].stop if chunks else 0, len(weight)))


def _product(hidden: Tensor, weight: Tensor, buffer: Tensor) -> Tensor:
    """Return logits [rows, v/t] of hidden states [rows, h], at the start of the buffer."""
    return torch.mm(hidden, weight.t(), out=buffer[: len(hidden)])


def _over_shards(local: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor, Tensor]:
    """Combine the statistics of the shards of the vocabulary.

    Args:
        local: [rows, 3] of this rank, see `row_statistics`.
        group: the ranks that share the vocabulary; none: there is one shard.

    Returns:
        Maximum, log of the sum of exp(logit - maximum), and target logit of each row, [rows].

    Comm: all-gather of [rows, 3] over the group.
    """
    shards = local[None]  # [1, rows, 3]
    if group is not None and len(local):
        shards = local.new_empty((group.size(), *local.shape))  # [t, rows, 3]
        dist.all_gather_into_tensor(shards.view(-1, 3), local, group=group)
    maxima, sums, chosen = shards.unbind(dim=2)  # [t, rows] each
    maximum = maxima.amax(dim=0)
    log_sum = (sums * (maxima - maximum).exp()).sum(dim=0).log()
    return maximum, log_sum, chosen.amax(dim=0)
