# SPDX-License-Identifier: Apache-2.0
"""The gradient of a weight as a sum of products, in fp32, where the optimizer will read it."""

import torch
from torch import Tensor


def add_product_(total: Tensor, gradient: Tensor, hidden: Tensor) -> None:
    """Add gradient^T @ hidden to a sum, which may be more precise than the factors.

    On a GPU cuBLAS multiplies bf16 and adds to fp32 in one product. PyTorch has that since
    2.8 (`addmm` with `out_dtype`), so neither Apex nor Transformer Engine is needed for it.

    Args:
        total: [v/t, h], changed.
        gradient: [rows, v/t].
        hidden: [rows, h], of the type of `gradient`.

    Comm: none.
    """
    if total.dtype == gradient.dtype:
        total.addmm_(gradient.t(), hidden)
    elif total.is_cuda:
        torch.addmm(total, gradient.t(), hidden, out_dtype=total.dtype, out=total)
    else:  # no such product on CPU: each chunk is rounded once before it is added
        total.add_(gradient.t() @ hidden)


class WeightGradient:
    """Collects the products of a backward pass.

    With Megatron's data parallelism a weight has `main_grad`, its part of the fp32 gradient
    buffer. Written there directly, a gradient needs no tensor of its own and is not rounded
    to bf16 between micro-batches. Megatron is told by `grad_added_to_main_grad`, and its
    hook then ignores what autograd hands over. That fits a weight that nothing else uses:
    for a tied one autograd adds up the gradients of all uses first.
    """

    def __init__(self, weight: Tensor, *, into_main_grad: bool, products: int) -> None:
        """Choose where to add.

        Args:
            weight: [v/t, h].
            into_main_grad: whether to add to `weight.main_grad` if there is one.
            products: how many will be added; a single one is not worth an fp32 sum.
        """
        self._weight = weight
        main_grad = getattr(weight, "main_grad", None) if into_main_grad else None
        self._is_main = main_grad is not None
        if main_grad is None:
            wide = torch.promote_types(weight.dtype, torch.float32)
            dtype = wide if products > 1 else weight.dtype
            main_grad = torch.zeros_like(weight, dtype=dtype)
        self._total = main_grad

    def add(self, gradient: Tensor, hidden: Tensor) -> None:
        """Add gradient^T @ hidden, of [rows, v/t] and [rows, h]."""
        add_product_(self._total, gradient, hidden)

    def for_autograd(self) -> Tensor | None:
        """Return what the backward pass hands over: the sum, or a placeholder that nobody reads.

        With `overlap_grad_reduce` Megatron insists on a tensor even if it ignores it.
        """
        if not self._is_main:
            return self._total.to(self._weight.dtype)
        if not hasattr(self._weight, "grad_added_to_main_grad"):
            return None
        self._weight.grad_added_to_main_grad = True
        return torch.empty_like(self._weight)
