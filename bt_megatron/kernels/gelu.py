# SPDX-License-Identifier: Apache-2.0
"""Exact GELU of a linear layer's output and the bias that is still to be added.

If the product of the layer adds its bias, the gradient of the bias costs a pass over memory of its
own backward: cuBLAS reads what GELU has just written. Here GELU sums it while it writes.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from bt_megatron.kernels import gelu_triton


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """Return GELU(x + bias), with the exact cumulative normal distribution (erf), not with tanh.

    On a GPU in one pass, in float32, rounded once; elsewhere in plain torch.

    Args:
        x: [s, b, f/t].
        bias: [f/t].

    Returns:
        [s, b, f/t].

    Comm: none.
    """
    if x.is_cuda:
        return _BiasGelu.apply(x.contiguous(), bias)
    return F.gelu(x + bias)


class _BiasGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, bias)
        return gelu_triton.activate(x, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, bias = ctx.saved_tensors
        x_gradient, sums = gelu_triton.activate_backward(gradient, x, bias)
        return x_gradient, sums.to(bias.dtype)
