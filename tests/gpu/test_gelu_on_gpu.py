# SPDX-License-Identifier: Apache-2.0
"""GELU with its bias in Triton against float64, and the same bits each time."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bt_megatron.kernels.gelu import bias_gelu

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
"""Distance from float64, of the norm: float32 sums, or one rounding of every value."""

SHAPES = [(1, 3072), (37, 6), (2113, 128), (37, 1000), (2113, 4096), (7, 2560), (9, 32768)]
CASES = [(dtype, *shape) for dtype in (torch.float32, torch.bfloat16) for shape in SHAPES]
CASES += [(torch.float16, 37, 3072), (torch.float16, 5, 1000)]


def inputs(rows: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    x, bias = torch.randn(rows, 1, width, device="cuda") * 2, torch.randn(width, device="cuda")
    return x.to(dtype).requires_grad_(), bias.to(dtype).requires_grad_()


def run(x: Tensor, bias: Tensor) -> list[Tensor]:
    """Return the activations and both gradients of a random upstream one."""
    out = bias_gelu(x, bias)
    torch.manual_seed(1)
    return [out, *torch.autograd.grad(out, (x, bias), torch.randn_like(out))]


def exact(x: Tensor, bias: Tensor) -> list[Tensor]:
    """Return the same in float64 and plain torch."""
    wide = [part.detach().double().requires_grad_() for part in (x, bias)]
    out = F.gelu(wide[0] + wide[1])
    torch.manual_seed(1)
    return [out, *torch.autograd.grad(out, wide, torch.randn_like(x).double())]


def require_close(got: list[Tensor], wanted: list[Tensor], limit: float) -> None:
    for mine, right in zip(got, wanted, strict=True):
        assert (mine.double() - right).norm() / right.norm() < limit, mine.shape


@pytest.mark.parametrize(("dtype", "rows", "width"), CASES)
def test_values_and_gradients(dtype: torch.dtype, rows: int, width: int) -> None:
    given = inputs(rows, width, dtype)
    got = run(*given)
    require_close(got, exact(*given), ROUNDING[dtype])
    assert {x.dtype for x in got} == {dtype}


def test_many_rows_a_program() -> None:
    given = inputs(81920, 768, torch.float32)
    require_close(run(*given), exact(*given), ROUNDING[torch.float32])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_extreme_values(dtype: torch.dtype) -> None:
    values = [0.0, 1e-30, 1e-6, 0.5, 1.0, 3.0, 5.0, 8.0, 20.0, 1e4, 1e30]
    x = torch.tensor([*values, *(-value for value in values)], device="cuda")
    x = x.to(dtype).view(1, 1, -1).requires_grad_()
    bias = torch.zeros(x.shape[-1], dtype=dtype, device="cuda", requires_grad=True)
    got, wanted = run(x, bias), exact(x, bias)
    for mine, right in zip(got, wanted, strict=True):
        # 1 + erf of a negative number is a difference: exact to a part of 1, as in torch.
        torch.testing.assert_close(mine.double(), right, atol=1e-6, rtol=ROUNDING[dtype])


def test_every_run_gives_the_same_bits() -> None:
    given = inputs(20011, 3072, torch.bfloat16)
    first = run(*given)
    for _ in range(3):
        assert all(map(torch.equal, run(*given), first))


def test_more_than_two_to_the_31_elements() -> None:
    rows, width = 2**19 + 3, 4096
    x = torch.full((rows, 1, width), 20.0, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    bias = torch.ones(width, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    out = bias_gelu(x, bias)
    assert bool((out[-4:] == 21).all())
    gradient, sums = torch.autograd.grad(out, (x, bias), torch.ones_like(out))
    assert bool((gradient[-4:] == 1).all())
    assert torch.equal(sums, torch.full_like(sums, rows))
