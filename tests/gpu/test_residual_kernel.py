# SPDX-License-Identifier: Apache-2.0
"""The residual sum in Triton against float64 additions."""

import pytest
import torch
from torch import Tensor

from bt_megatron.kernels.residual import residual_sum

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2**-8}
"""Relative error of a value that is rounded once."""


def random(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, dtype=dtype, device="cuda", requires_grad=True)


@pytest.mark.parametrize("width", [64, 768, 1000, 2048])
@pytest.mark.parametrize("biases", [True, False], ids=["biases", "no biases"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_sum_is_rounded_once(dtype: torch.dtype, biases: bool, width: int) -> None:
    torch.manual_seed(0)
    hidden, first, second = (random(37, 3, width, dtype=dtype) for _ in range(3))
    first_bias, second_bias = (random(width, dtype=dtype) if biases else None for _ in range(2))
    out = residual_sum(hidden, (first, first_bias), (second, second_bias))
    there = [part for part in (hidden, first, first_bias, second, second_bias) if part is not None]
    expected = sum(part.double() for part in there)
    assert out.is_contiguous()
    torch.testing.assert_close(out.double(), expected, atol=1e-6, rtol=ROUNDING[dtype])
    upstream = torch.randn_like(out)
    for part, gradient in zip(there, torch.autograd.grad(out, there, upstream), strict=True):
        wanted = upstream.double() if part.dim() == 3 else upstream.double().sum(dim=(0, 1))
        torch.testing.assert_close(
            gradient.double(), wanted, atol=1e-4, rtol=ROUNDING[dtype], msg=str(part.shape)
        )


def test_more_than_two_to_the_31_elements() -> None:
    rows, width = 2**21 + 3, 1024
    hidden = torch.ones(rows, 1, width, dtype=torch.bfloat16, device="cuda")
    out = residual_sum(hidden, (hidden, None))
    assert bool((out[-4:] == 2).all())
    assert bool((out[:4] == 2).all())
