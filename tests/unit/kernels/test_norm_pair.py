# SPDX-License-Identifier: Apache-2.0
"""Two norms of the same rows, in plain torch and in Triton's interpreter."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bt_megatron.kernels.norm_pair import norm_pair
from tests.unit.kernels.interpreted import run_interpreted


def inputs(*, biases: bool) -> list[Tensor | None]:
    torch.manual_seed(0)
    shapes = [(5, 2, 6), (6,), biases and (6,), (6,), biases and (6,)]
    return [torch.randn(shape, requires_grad=True) if shape else None for shape in shapes]


@pytest.mark.parametrize("biases", [True, False], ids=["LayerNorm", "RMSNorm"])
def test_norms_and_gradients_are_those_of_torch(biases: bool) -> None:
    hidden, first, first_bias, second, second_bias = inputs(biases=biases)

    def norm(weight: Tensor, bias: Tensor | None) -> Tensor:
        if bias is None:
            return F.rms_norm(hidden, (6,), weight, 1e-5)
        return F.layer_norm(hidden, (6,), weight, bias, 1e-5)

    got = norm_pair(hidden, (first, first_bias), (second, second_bias), eps=1e-5)
    expected = (hidden, norm(first, first_bias), norm(second, second_bias))
    upstream = [torch.randn(5, 2, 6) for _ in range(3)]
    there = [x for x in (hidden, first, first_bias, second, second_bias) if x is not None]
    got_gradients = torch.autograd.grad(got, there, upstream)
    expected_gradients = torch.autograd.grad(expected, there, upstream)
    for mine, wanted in zip((*got, *got_gradients), (*expected, *expected_gradients), strict=True):
        assert torch.equal(mine, wanted)


def test_triton_kernels_in_their_interpreter() -> None:
    assert run_interpreted("norm_pair") == 16
