# SPDX-License-Identifier: Apache-2.0
"""Losses and gradients of the fused head against a softmax written out in float64."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bt_megatron.kernels import linear_cross_entropy as module
from bt_megatron.kernels.linear_cross_entropy import linear_cross_entropy

WIDTH, COLUMNS, VOCAB = 16, 40, 37
"""Three columns are padding."""
EXACT = {"rtol": 1e-12, "atol": 1e-13}
SINGLE = {"rtol": 2e-6, "atol": 2e-6}
CHUNKS = pytest.mark.parametrize("chunk_rows", [None, 1, 4, 5, 11, 64], ids=str)


def inputs(rows: int = 11, *, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(rows, WIDTH, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(COLUMNS, WIDTH, dtype=torch.float64).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(VOCAB, (rows,))


def expected_losses(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    logits = hidden.double() @ weight.double()[:VOCAB].t()
    return F.cross_entropy(logits, targets, reduction="none")


def gradients(losses: Tensor, upstream: Tensor, *inputs: Tensor, **how: bool) -> list[Tensor]:
    return list(torch.autograd.grad(losses, inputs, upstream.to(losses.dtype), **how))


@CHUNKS
def test_losses_and_gradients_in_float64(chunk_rows: int | None) -> None:
    hidden, weight, targets = inputs()
    upstream = torch.tensor([1.0, 0.0, -2.0, 0.5, 3.0, 0.0, 1e-3, 1.0, 7.0, 1.0, -1.0])
    losses = linear_cross_entropy(hidden, weight, targets, vocab_size=VOCAB, chunk_rows=chunk_rows)
    expected = expected_losses(hidden, weight, targets)
    torch.testing.assert_close(losses, expected, **EXACT)
    got = gradients(losses, upstream, hidden, weight)
    wanted = gradients(expected, upstream, hidden, weight)
    torch.testing.assert_close(got, wanted, **EXACT)
    assert got[1][VOCAB:].count_nonzero() == 0


@CHUNKS
def test_float32_is_near_float64(chunk_rows: int | None) -> None:
    hidden, weight, targets = inputs(dtype=torch.float32)
    losses = linear_cross_entropy(hidden, weight, targets, vocab_size=VOCAB, chunk_rows=chunk_rows)
    expected = expected_losses(hidden, weight, targets)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.double(), expected, **SINGLE)
    upstream = torch.rand(11)
    for got, wanted in zip(
        gradients(losses, upstream, hidden, weight),
        gradients(expected, upstream, hidden, weight),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, **SINGLE)


@pytest.mark.parametrize("chunk_rows", [None, 4], ids=str)
def test_bf16_rounds_logits_and_gradients_only(chunk_rows: int | None) -> None:
    hidden, weight, targets = inputs(rows=64, dtype=torch.bfloat16)
    losses = linear_cross_entropy(hidden, weight, targets, vocab_size=VOCAB, chunk_rows=chunk_rows)
    logits = (hidden @ weight.t())[:, :VOCAB].double()  # rounded to bf16
    expected = F.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(losses.double(), expected, **SINGLE)
    upstream = torch.ones(64)
    for got, wanted in zip(
        gradients(losses, upstream, hidden, weight),
        gradients(expected_losses(hidden, weight, targets), upstream, hidden, weight),
        strict=True,
    ):
        assert got.dtype == torch.bfloat16
        assert (got.double() - wanted.double()).norm() < 0.02 * wanted.double().norm()


@pytest.mark.parametrize("chunk_rows", [None, 4], ids=str)
@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows(rows: int, chunk_rows: int | None) -> None:
    hidden, weight, targets = inputs(rows)
    losses = linear_cross_entropy(hidden, weight, targets, vocab_size=VOCAB, chunk_rows=chunk_rows)
    torch.testing.assert_close(losses, expected_losses(hidden, weight, targets), **EXACT)
    got = gradients(losses, torch.ones(rows), hidden, weight)
    assert [g.shape for g in got] == [hidden.shape, weight.shape]
    assert rows or got[1].count_nonzero() == 0


def test_chunks_change_losses_by_rounding_only() -> None:
    hidden, weight, targets = inputs(64, dtype=torch.float32)
    whole, cut = (
        linear_cross_entropy(hidden, weight, targets, vocab_size=VOCAB, chunk_rows=chunk)
        for chunk in (None, 16)
    )
    torch.testing.assert_close(whole, cut, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("chunk_rows", [None, 4], ids=str)
def test_a_second_backward_pass_gives_the_same(chunk_rows: int | None) -> None:
    hidden, weight, targets = inputs(dtype=torch.float32)
    losses = linear_cross_entropy(hidden, weight, targets, vocab_size=VOCAB, chunk_rows=chunk_rows)
    upstream = torch.rand(11)
    first = gradients(losses, upstream, hidden, weight, retain_graph=True)
    second = gradients(losses, upstream, hidden, weight)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(("chunk_rows", "products"), [(None, 1), (4, 3 + 2), (11, 1), (10, 2 + 1)])
def test_only_the_chunks_before_the_last_are_computed_again(
    chunk_rows: int | None, products: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = []
    product = module._product

    def counted(hidden: Tensor, weight: Tensor, buffer: Tensor) -> Tensor:
        computed.append(len(hidden))
        return product(hidden, weight, buffer)

    monkeypatch.setattr(module, "_product", counted)
    hidden, weight, targets = inputs()
    losses = linear_cross_entropy(hidden, weight, targets, vocab_size=VOCAB, chunk_rows=chunk_rows)
    losses.sum().backward()
    assert len(computed) == products
    assert max(computed) <= (chunk_rows or 11)


def test_frozen_inputs_get_no_gradient() -> None:
    hidden, weight, targets = inputs()
    weight.requires_grad_(False)
    losses = linear_cross_entropy(hidden, weight, targets, vocab_size=VOCAB, chunk_rows=4)
    losses.sum().backward()
    assert weight.grad is None
    (wanted,) = gradients(expected_losses(hidden, weight, targets), torch.ones(11), hidden)
    torch.testing.assert_close(hidden.grad, wanted, **EXACT)


@pytest.mark.parametrize("target", [-1, VOCAB, COLUMNS, 10**9])
def test_an_id_that_does_not_exist_is_not_mistaken_for_another(target: int) -> None:
    hidden, weight, targets = inputs()
    targets[3] = target
    losses = linear_cross_entropy(hidden, weight, targets, vocab_size=VOCAB)
    assert losses[3] == float("inf")
    assert losses[4:].isfinite().all()


def test_certainty_is_exact() -> None:
    """Large logits cancel before the logarithm: no loss is lost in log(exp(1000))."""
    weight = torch.eye(4)
    hidden = torch.tensor([[1000.0, 999.0, 0.0, 0.0], [80.0, 0.0, 0.0, 0.0]])
    losses = linear_cross_entropy(hidden, weight, torch.tensor([0, 0]), vocab_size=4)
    assert losses.tolist() == pytest.approx([0.31326169, 0.0], abs=1e-7)
