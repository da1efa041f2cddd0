# SPDX-License-Identifier: Apache-2.0
"""The residual sum of a layer, x + attention + bias + mlp + bias, in one pass over memory.

Written as separate additions it takes four passes forward, and backward two sums over all rows
for two biases whose gradient is the same.
"""

from typing import Any

import torch
from torch import Tensor

from bt_megatron.kernels import residual_triton

Part = tuple[Tensor, Tensor | None]
"""Output of a linear layer and the bias that is still to be added."""


def residual_sum(hidden: Tensor, first: Part, second: Part | None = None) -> Tensor:
    """Return hidden plus one or two parts, each with its bias.

    On a GPU in one pass, in float32, rounded once; elsewhere in plain torch.

    Args:
        hidden: [s, b, h].
        first: [s, b, h], and [h] or None.
        second: likewise.

    Returns:
        [s, b, h].

    Comm: none.
    """
    output, bias = second if second is not None else (None, None)
    return _ResidualSum.apply(hidden, *first, output, bias)


class _ResidualSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        first: Tensor,
        first_bias: Tensor | None,
        second: Tensor | None,
        second_bias: Tensor | None,
    ) -> Tensor:
        if hidden.is_cuda:
            return residual_triton.add_up(hidden, first, first_bias, second, second_bias)
        total = hidden + first
        for operand in (first_bias, second, second_bias):
            if operand is not None:
                total = total + operand
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        needs_bias = ctx.needs_input_grad[2] or ctx.needs_input_grad[4]
        rows = gradient.flatten(0, -2).sum(dim=0) if needs_bias else None  # [h]
        every = (gradient, gradient, rows, gradient, rows)
        return tuple(
            part if needed else None
            for part, needed in zip(every, ctx.needs_input_grad, strict=True)
        )
