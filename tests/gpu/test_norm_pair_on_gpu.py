# SPDX-License-Identifier: Apache-2.0
"""The two norms in Triton against float64: values, every gradient, and the same bits each time."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bt_megatron.kernels.norm_pair import norm_pair

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

EPS = 1e-5
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
"""Distance from float64, of the norm: float32 sums, or one rounding of every value."""
SHAPES = [
    (1, 768),
    (37, 6),
    (2113, 128),
    (37, 1000),
    (2113, 1024),
    (37, 2048),
    (7, 2560),
    (9, 8192),
]
CASES = [(dtype, *shape) for dtype in (torch.float32, torch.bfloat16) for shape in SHAPES]
CASES += [(torch.float16, 37, 768), (torch.float16, 5, 2048)]


def inputs(rows: int, width: int, dtype: torch.dtype, *, biases: bool) -> list[Tensor | None]:
    """Return hidden states and weight and bias of two norms."""
    torch.manual_seed(0)
    hidden = torch.randn(rows, 1, width, device="cuda") * 3 + 0.5
    affine = [torch.randn(width, device="cuda") for _ in range(4)]
    if not biases:
        affine[1] = affine[3] = None
    made = [None if x is None else x.to(dtype) for x in (hidden, *affine)]
    return [None if x is None else x.requires_grad_() for x in made]


def run(given: list[Tensor | None], eps: float = EPS) -> list[Tensor]:
    """Return outputs and all gradients of random upstream ones."""
    hidden, first, first_bias, second, second_bias = given
    outs = norm_pair(hidden, (first, first_bias), (second, second_bias), eps=eps)
    torch.manual_seed(1)
    upstream = [torch.randn_like(out) for out in outs]
    there = [x for x in given if x is not None]
    return [*outs, *torch.autograd.grad(outs, there, upstream)]


def exact(given: list[Tensor | None], eps: float = EPS) -> list[Tensor]:
    """Return the same in float64 and plain torch."""
    hidden, *affine = [None if x is None else x.detach().double().requires_grad_() for x in given]

    def norm(weight: Tensor, bias: Tensor | None) -> Tensor:
        if bias is None:
            return F.rms_norm(hidden, weight.shape, weight, eps)
        return F.layer_norm(hidden, weight.shape, weight, bias, eps)

    outs = (hidden * 1, norm(*affine[:2]), norm(*affine[2:]))
    torch.manual_seed(1)
    upstream = [torch.randn_like(given[0]).double() for _ in outs]
    there = [x for x in (hidden, *affine) if x is not None]
    return [*outs, *torch.autograd.grad(outs, there, upstream)]


def require_close(got: list[Tensor], wanted: list[Tensor], limit: float) -> None:
    far = {}
    for index, (mine, right) in enumerate(zip(got, wanted, strict=True)):
        distance = ((mine.double() - right).norm() / right.norm()).item()
        if not distance < limit:
            far[index, tuple(mine.shape)] = distance
    assert far == {}


@pytest.mark.parametrize("biases", [True, False], ids=["LayerNorm", "RMSNorm"])
@pytest.mark.parametrize(("dtype", "rows", "width"), CASES)
def test_values_and_gradients(dtype: torch.dtype, rows: int, width: int, biases: bool) -> None:
    given = inputs(rows, width, dtype, biases=biases)
    got = run(given)
    require_close(got, exact(given), ROUNDING[dtype])
    assert {x.dtype for x in got} == {dtype}
    assert all(x.is_contiguous() for x in got)


def test_many_rows_a_program() -> None:
    given = inputs(81920, 768, torch.float32, biases=True)
    require_close(run(given), exact(given), ROUNDING[torch.float32])


@pytest.mark.parametrize(
    ("scale", "shift"), [(1e-4, 0.0), (1e4, 0.0), (1.0, 100.0), (0.0, 3.0)],
    ids=["smaller than eps", "large", "far from zero", "constant rows"],
)  # fmt: skip
def test_extreme_rows(scale: float, shift: float) -> None:
    given = inputs(64, 1000, torch.float32, biases=True)
    given[0] = (given[0].detach() * scale + shift).requires_grad_()
    got, wanted = run(given), exact(given)
    assert all(bool(x.isfinite().all()) for x in got)
    # The distance of a value from the mean is as exact as the value itself.
    spread = given[0].detach().std(dim=-1).mean().item()
    limit = ROUNDING[torch.float32] * (1 + abs(shift) / max(spread, EPS**0.5))
    for mine, right in zip(got[1:], wanted[1:], strict=True):
        # Gradients of weights are sums over rows; of constant rows all are off the same way.
        terms = len(given[0]) if right.dim() == 1 else 1
        assert (mine.double() - right).abs().max() <= limit * max(terms, right.abs().max().item())


def test_weights_may_be_of_another_type() -> None:
    given = inputs(37, 768, torch.float32, biases=True)
    given[0] = given[0].detach().to(torch.bfloat16).requires_grad_()
    got = run(given)
    assert [x.dtype for x in got] == [torch.bfloat16] * 4 + [torch.float32] * 4
    require_close(got, exact(given), ROUNDING[torch.bfloat16])


def test_gradients_that_are_not_contiguous() -> None:
    given = inputs(8, 768, torch.float32, biases=True)
    hidden, *affine = given
    outs = norm_pair(hidden, tuple(affine[:2]), tuple(affine[2:]), eps=EPS)
    upstream = torch.randn(8, 768, 1, device="cuda").transpose(1, 2)
    got = torch.autograd.grad(outs, hidden, [upstream] * 3, retain_graph=True)
    wanted = torch.autograd.grad(outs, hidden, [upstream.contiguous()] * 3)
    assert torch.equal(got[0], wanted[0])


@pytest.mark.parametrize("width", [768, 2048])
def test_every_run_gives_the_same_bits(width: int) -> None:
    given = inputs(20011, width, torch.bfloat16, biases=True)
    first = run(given)
    for _ in range(3):
        assert all(map(torch.equal, run(given), first))


def test_more_than_two_to_the_31_elements() -> None:
    rows, width = 2**21 + 3, 1024
    hidden = torch.zeros(rows, 1, width, dtype=torch.bfloat16, device="cuda")
    hidden[:, :, ::2] = 2.0
    hidden.requires_grad_()
    weight = torch.ones(width, dtype=torch.bfloat16, device="cuda")
    bias = torch.zeros_like(weight)
    outs = norm_pair(hidden, (weight, bias), (2 * weight, bias), eps=0.0)
    for out, value in zip(outs[1:], (1.0, 2.0), strict=True):
        assert bool((out[-4:, :, ::2] == value).all())
        assert bool((out[-4:, :, 1::2] == -value).all())
    (gradient,) = torch.autograd.grad(outs, hidden, [hidden.detach(), outs[1], outs[2]])
    # Gradients along the normalised rows themselves have no effect; the stream's passes.
    assert bool((gradient[-4:].float() - hidden[-4:].float()).abs().max() < 1e-2)
