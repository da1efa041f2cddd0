# SPDX-License-Identifier: Apache-2.0
"""The fused head on a GPU: against float64, within a memory bound, the same bits every time."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bt_megatron.kernels.linear_cross_entropy import linear_cross_entropy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

ROWS, WIDTH, COLUMNS, VOCAB = 1000, 256, 50304, 50257
LOSS_ATOL = {torch.float32: 2e-5, torch.bfloat16: 2e-5}
"""In nats; bf16 is compared with the loss of its own rounded logits."""
GRADIENT_NORM = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Norm of the difference, relative."""
DTYPES = pytest.mark.parametrize("dtype", LOSS_ATOL, ids=str)
CHUNKS = pytest.mark.parametrize("chunk_rows", [None, 384], ids=["whole", "chunks"])


def inputs(
    dtype: torch.dtype, rows: int = ROWS, columns: int = COLUMNS
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator("cuda").manual_seed(0)
    place = {"device": "cuda", "generator": generator}
    hidden = torch.randn(rows, WIDTH, **place).to(dtype).requires_grad_()
    weight = torch.nn.Parameter((torch.randn(columns, WIDTH, **place) * 0.1).to(dtype))
    return hidden, weight, torch.randint(min(VOCAB, columns), (rows,), **place)


def run(
    dtype: torch.dtype, chunk_rows: int | None, *, main_grad: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    hidden, weight, targets = inputs(dtype)
    if main_grad:
        weight.main_grad = torch.zeros(weight.shape, device="cuda")
        weight.grad_added_to_main_grad = False
    losses = linear_cross_entropy(
        hidden, weight, targets, vocab_size=VOCAB, chunk_rows=chunk_rows, into_main_grad=main_grad
    )
    (losses * upstream()).sum().backward()
    return losses.detach(), hidden.grad, weight.main_grad if main_grad else weight.grad


def upstream() -> Tensor:
    return torch.linspace(-1, 2, ROWS, device="cuda").where(torch.arange(ROWS).cuda() % 5 > 0, 0.0)


def relative(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("main_grad", [False, True], ids=["own-gradient", "main-grad"])
@CHUNKS
@DTYPES
def test_against_float64(dtype: torch.dtype, chunk_rows: int | None, main_grad: bool) -> None:
    losses, hidden_gradient, weight_gradient = run(dtype, chunk_rows, main_grad=main_grad)

    hidden, weight, targets = inputs(dtype)
    rounded = (hidden.detach() @ weight.detach().t())[:, :VOCAB].double()
    expected = F.cross_entropy(rounded, targets, reduction="none")
    torch.testing.assert_close(losses.double(), expected, atol=LOSS_ATOL[dtype], rtol=0)

    wide = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    exact = F.cross_entropy((wide[0] @ wide[1].t())[:, :VOCAB], targets, reduction="none")
    (exact * upstream()).sum().backward()
    assert relative(hidden_gradient, wide[0].grad) < GRADIENT_NORM[dtype]
    assert relative(weight_gradient, wide[1].grad) < GRADIENT_NORM[dtype]
    assert weight_gradient[VOCAB:].count_nonzero() == 0


@CHUNKS
@DTYPES
def test_every_run_gives_the_same_bits(dtype: torch.dtype, chunk_rows: int | None) -> None:
    first, second = (run(dtype, chunk_rows, main_grad=True) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("chunk_rows", [None, 2048], ids=["whole", "chunks"])
def test_memory_is_one_chunk_of_bf16_logits(chunk_rows: int | None) -> None:
    rows = 8192
    hidden, weight, targets = inputs(torch.bfloat16, rows)
    weight.main_grad = torch.zeros(weight.shape, device="cuda")
    weight.grad_added_to_main_grad = False
    # The first product takes cuBLAS's workspace, which stays.
    run(torch.bfloat16, chunk_rows, main_grad=True)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()

    losses = linear_cross_entropy(
        hidden, weight, targets, vocab_size=VOCAB, chunk_rows=chunk_rows, into_main_grad=True
    )
    losses.sum().backward()

    used = torch.cuda.max_memory_allocated() - before
    logits = 2 * (chunk_rows or rows) * COLUMNS
    gradients = 2 * WIDTH * (rows + COLUMNS)  # of hidden; the placeholder of the weight
    per_row = 64 * rows  # statistics, factors, losses
    assert used < logits + gradients + per_row + 2**21


@pytest.mark.parametrize("columns", [50257, 1000, 7], ids=["odd", "one-block", "seven"])
def test_vocabularies_of_any_size(columns: int) -> None:
    hidden, weight, targets = inputs(torch.float32, rows=33, columns=columns)
    losses = linear_cross_entropy(hidden, weight, targets, vocab_size=columns)
    expected = F.cross_entropy((hidden @ weight.t()).double(), targets, reduction="none")
    torch.testing.assert_close(losses.double(), expected, atol=2e-5, rtol=0)
    got = torch.autograd.grad(losses.sum(), (hidden, weight))
    wanted = torch.autograd.grad(expected.sum(), (hidden, weight))
    for one, other in zip(got, wanted, strict=True):
        assert relative(one, other.double()) < 1e-5


@pytest.mark.parametrize("target", [-1, VOCAB, 10**9])
def test_an_id_that_does_not_exist_reads_no_other_memory(target: int) -> None:
    hidden, weight, targets = inputs(torch.bfloat16, rows=16)
    targets[3] = target
    losses = linear_cross_entropy(hidden, weight, targets, vocab_size=VOCAB)
    assert losses[3] == float("inf")
    assert losses[4:].isfinite().all()


def test_rows_beyond_two_to_the_31_logits() -> None:
    """Addresses of the last rows do not fit 32 bits."""
    rows = 2**31 // COLUMNS + 10
    hidden, weight, targets = inputs(torch.bfloat16, rows)
    losses = linear_cross_entropy(hidden, weight, targets, vocab_size=VOCAB)
    losses[-8:].sum().backward()
    tail = linear_cross_entropy(hidden[-8:].detach(), weight, targets[-8:], vocab_size=VOCAB)
    torch.testing.assert_close(losses[-8:], tail, atol=0.05, rtol=0)  # other bf16 rounding
    assert hidden.grad[-8:].norm() > 0
    assert hidden.grad[:-8].count_nonzero() == 0
