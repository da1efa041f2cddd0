# SPDX-License-Identifier: Apache-2.0
"""Where the gradient of the head's weight is added, as Megatron's data parallelism expects."""

import pytest
import torch
from torch import Tensor

from bt_megatron.kernels.linear_cross_entropy import linear_cross_entropy
from bt_megatron.kernels.weight_gradient import add_product_

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def backward(weight: Tensor, *, seed: int, chunk_rows: int | None = 3, **how: bool) -> Tensor:
    """Run the head once and return the weight's gradient of these rows, in float64."""
    torch.manual_seed(seed)
    hidden, targets = torch.randn(8, 6).to(weight.dtype), torch.randint(10, (8,))
    losses = linear_cross_entropy(
        hidden, weight, targets, vocab_size=10, chunk_rows=chunk_rows, **how
    )
    losses.sum().backward()
    whole = weight.detach().double().requires_grad_()
    wide = hidden.double() @ whole.t()
    torch.nn.functional.cross_entropy(wide, targets, reduction="sum").backward()
    assert whole.grad is not None
    return whole.grad


def main_weight(dtype: torch.dtype) -> Tensor:
    torch.manual_seed(9)
    weight = torch.nn.Parameter(torch.randn(10, 6).to(dtype))
    weight.main_grad = torch.full((10, 6), 0.25)
    return weight


@DTYPES
@pytest.mark.parametrize("chunk_rows", [None, 3], ids=str)
def test_micro_batches_add_up_in_main_grad(dtype: torch.dtype, chunk_rows: int | None) -> None:
    weight = main_weight(dtype)
    weight.grad_added_to_main_grad = False
    total = torch.full((10, 6), 0.25, dtype=torch.float64)
    for seed in (1, 2):
        total += backward(weight, seed=seed, chunk_rows=chunk_rows, into_main_grad=True)
        assert weight.grad_added_to_main_grad
        assert weight.grad is not None, "overlap_grad_reduce wants a tensor"
        assert weight.grad.shape == weight.shape
        weight.grad = None  # as Megatron's hook does
    bound = 1e-5 if dtype == torch.float32 else 0.02
    assert (weight.main_grad.double() - total).norm() < bound * total.norm()


def test_without_megatron_s_flag_there_is_no_placeholder() -> None:
    weight = main_weight(torch.float32)
    backward(weight, seed=1, into_main_grad=True)
    assert weight.grad is None


@DTYPES
def test_a_tied_weight_leaves_main_grad_to_autograd(dtype: torch.dtype) -> None:
    weight = main_weight(dtype)
    weight.grad_added_to_main_grad = False
    total = backward(weight, seed=1)
    assert weight.main_grad.unique().tolist() == [0.25]
    assert not weight.grad_added_to_main_grad
    assert weight.grad is not None
    bound = 1e-5 if dtype == torch.float32 else 0.02
    assert (weight.grad.double() - total).norm() < bound * total.norm()


def test_forward_passes_leave_main_grad_alone() -> None:
    weight = main_weight(torch.float32)
    hidden, targets = torch.randn(8, 6), torch.randint(10, (8,))
    how = {"vocab_size": 10, "chunk_rows": 3, "into_main_grad": True}
    with torch.no_grad():
        linear_cross_entropy(hidden, weight, targets, **how)
    linear_cross_entropy(hidden, weight, targets, **how)
    assert weight.main_grad.unique().tolist() == [0.25]


def test_many_bf16_products_are_summed_in_float32() -> None:
    """In bf16, 1 + 1/512 is 1 however often it is added."""
    total = torch.ones(1, 1)
    small = torch.full((1, 1), 2.0**-9, dtype=torch.bfloat16)
    for _ in range(512):
        add_product_(total, small, torch.ones(1, 1, dtype=torch.bfloat16))
    assert total.item() == 2.0
