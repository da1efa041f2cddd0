# SPDX-License-Identifier: Apache-2.0
"""Cross entropy over one shard of the vocabulary: Triton on a GPU, plain PyTorch elsewhere.

Columns of a shard are token ids `first`, `first + 1`, ...; the last ones may be padding,
which has no probability and gets no gradient. Letters of shapes: model/shapes.py.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bt_megatron.kernels import cross_entropy_triton


@dataclass(frozen=True, slots=True)
class VocabShard:
    """Which token ids the columns of one rank stand for."""

    first: int
    """Id of column 0."""
    real: int
    """Leading columns that are no padding; may be none."""


def statistics_dtype(logits_dtype: torch.dtype) -> torch.dtype:
    """Return the type in which sums over logits are taken: fp32, or fp64 for fp64 logits."""
    return torch.promote_types(logits_dtype, torch.float32)


def row_statistics(logits: Tensor, targets: Tensor, shard: VocabShard) -> Tensor:
    """Return what the cross entropy needs to know of each row of logits.

    Args:
        logits: [rows, v/t], contiguous.
        targets: [rows] int64 ids in the whole vocabulary.
        shard: this rank's ids.

    Returns:
        [rows, 3], at least fp32: the maximum (-inf if all columns are padding), the sum of
        exp(logit - maximum), and the logit of the target (-inf if it is not in this shard).

    Comm: none.
    """
    statistics = logits.new_empty((len(logits), 3), dtype=statistics_dtype(logits.dtype))
    if _on_triton(logits):
        cross_entropy_triton.write_statistics(
            logits, targets, statistics, first=shard.first, real=shard.real
        )
        return statistics
    if not shard.real:
        return statistics.copy_(statistics.new_tensor((float("-inf"), 0.0, float("-inf"))))
    real = logits[:, : shard.real].to(statistics.dtype)
    maximum = real.amax(dim=1)
    statistics[:, 0] = maximum
    statistics[:, 1] = (real - maximum[:, None]).exp().sum(dim=1)
    column = targets - shard.first
    held = (column >= 0) & (column < shard.real)
    chosen = real.gather(1, column.clamp(0, shard.real - 1)[:, None])[:, 0]
    statistics[:, 2] = chosen.where(held, float("-inf"))
    return statistics


def logits_to_gradient_(
    logits: Tensor, targets: Tensor, factors: Tensor, shard: VocabShard
) -> Tensor:
    """Overwrite logits with the gradient of the loss, (softmax - onehot) * upstream.

    Args:
        logits: [rows, v/t], contiguous.
        targets: [rows] int64 ids in the whole vocabulary.
        factors: [rows, 3] of the whole vocabulary: maximum, log of the sum of
            exp(logit - maximum), and the upstream gradient of the row's loss.
        shard: this rank's ids.

    Returns:
        `logits`, 0 in padding columns.

    Comm: none.
    """
    if _on_triton(logits):
        cross_entropy_triton.write_gradient(
            logits, targets, factors, first=shard.first, real=shard.real
        )
        return logits
    maximum, log_sum, upstream = factors[:, :, None].unbind(dim=1)  # [rows, 1] each
    gradient = (logits.to(factors.dtype) - maximum - log_sum).exp_()
    columns = torch.arange(logits.shape[1], device=logits.device)
    gradient -= (columns == (targets - shard.first)[:, None]).to(gradient.dtype)
    gradient *= upstream
    gradient[:, shard.real :] = 0.0
    return logits.copy_(gradient)


def _on_triton(logits: Tensor) -> bool:
    return logits.is_cuda and logits.dtype in (torch.bfloat16, torch.float16, torch.float32)
