# SPDX-License-Identifier: Apache-2.0
"""Both norms of a layer with parallel residual, which normalise the same rows.

As two norms the rows are read twice forward and twice backward, and autograd adds up their three
gradients in two more passes: those of both norms and that of the residual stream. Here the stream
goes through the same operation, so that the backward pass writes its gradient once.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from bt_megatron.kernels import norm_pair_triton
from bt_megatron.kernels.norm_pair_triton import Affine


def norm_pair(
    hidden: Tensor, first: Affine, second: Affine, *, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the rows and two norms of them: LayerNorm, or RMSNorm without biases.

    On a GPU in one pass, with statistics in float32 and each value rounded once; elsewhere in
    plain torch.

    Args:
        hidden: [s, b, h], h at most 8,192 on a GPU.
        first: weight and bias, [h] each; no bias: RMSNorm.
        second: likewise, with a bias if the first has one.
        eps: added to the variance.

    Returns:
        `hidden` itself, from which the residual stream must go on, and both norms, [s, b, h] each.

    Comm: none.
    """
    if hidden.is_cuda:
        return _NormPair.apply(hidden.contiguous(), *first, *second, eps)
    return hidden, _plain(hidden, first, eps), _plain(hidden, second, eps)


def _plain(hidden: Tensor, affine: Affine, eps: float) -> Tensor:
    weight, bias = affine
    if bias is None:
        return F.rms_norm(hidden, weight.shape, weight, eps)
    return F.layer_norm(hidden, weight.shape, weight, bias, eps)


class _NormPair(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        first_weight: Tensor,
        first_bias: Tensor | None,
        second_weight: Tensor,
        second_bias: Tensor | None,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        first, second = (first_weight, first_bias), (second_weight, second_bias)
        *normed, statistics = norm_pair_triton.normalize(hidden, first, second, eps)
        ctx.save_for_backward(hidden, statistics, first_weight, second_weight)
        ctx.is_centred = first_bias is not None
        return hidden, *normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, statistics, *weights = ctx.saved_tensors
        out, sums = norm_pair_triton.normalize_backward(
            hidden, statistics, gradients, tuple(weights), is_centred=ctx.is_centred
        )
        first, second, *biases = sums.to(weights[0].dtype)  # [h] each
        first_bias, second_bias = biases or (None, None)
        return out, first, first_bias, second, second_bias, None
