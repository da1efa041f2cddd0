# SPDX-License-Identifier: Apache-2.0
"""Statistics and gradient of one shard of the vocabulary, against float64 softmax."""

import pytest
import torch
from torch import Tensor

from bt_megatron.kernels.cross_entropy import VocabShard, logits_to_gradient_, row_statistics

TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 1e-6}
"""Relative. Sums over bf16 logits are taken in float32."""
INF = float("inf")


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_statistics_of_a_shard_with_padding(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = (torch.randn(5, 12) * 4).to(dtype)
    targets = torch.tensor([20, 28, 29, 19, 24])  # ids 20..28 are in the shard, 29..31 padding
    got = row_statistics(logits, targets, VocabShard(first=20, real=9))

    real = logits[:, :9].double()
    maximum = real.amax(dim=1)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert got[:, 0].tolist() == maximum.tolist()
    sums = (real - maximum[:, None]).exp().sum(dim=1)
    torch.testing.assert_close(got[:, 1].double(), sums, rtol=TOLERANCE[dtype], atol=0)
    assert got[:, 2].tolist() == [real[0, 0], real[1, 8], -INF, -INF, real[4, 4]]


def test_a_shard_of_padding_only_has_no_probability() -> None:
    got = row_statistics(torch.randn(2, 4), torch.tensor([0, 9]), VocabShard(first=9, real=0))
    assert got.tolist() == [[-INF, 0.0, -INF]] * 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_gradient_of_a_shard(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    whole = (torch.randn(6, 30) * 3).to(dtype)  # ids 0..29, of which 10..19 are in the shard
    targets = torch.tensor([10, 19, 3, 27, 14, 14])
    upstream = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0, 0.125], dtype=torch.float64)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    maximum = whole.double().amax(dim=1)
    log_sum = (whole.double() - maximum[:, None]).exp().sum(dim=1).log()
    factors = torch.stack((maximum, log_sum, upstream), dim=1).to(wide)
    logits = torch.cat((whole[:, 10:20], torch.full((6, 2), 7.0, dtype=dtype)), dim=1)

    got = logits_to_gradient_(logits, targets, factors, VocabShard(first=10, real=10))

    onehot = torch.nn.functional.one_hot(targets, 30)
    expected = ((whole.double().softmax(1) - onehot) * upstream[:, None])[:, 10:20]
    assert got.data_ptr() == logits.data_ptr()
    bound = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 2**-8}[dtype]
    torch.testing.assert_close(got[:, :10].double(), expected, rtol=bound, atol=1e-12)
    assert got[:, 10:].tolist() == [[0.0, 0.0]] * 6


@pytest.mark.parametrize("bad", [INF, float("nan")], ids=["inf", "nan"])
def test_what_is_not_finite_is_not_hidden(bad: float) -> None:
    logits: Tensor = torch.zeros(1, 4)
    logits[0, 1] = bad
    maximum, total, _ = row_statistics(logits, torch.tensor([0]), VocabShard(0, 4))[0]
    assert not torch.isfinite(maximum + total.log())
