# SPDX-License-Identifier: Apache-2.0
"""GELU with the bias in front of it, in plain torch and in Triton's interpreter."""

import torch
from torch.nn import functional as F

from bt_megatron.kernels.gelu import bias_gelu
from tests.unit.kernels.interpreted import run_interpreted


def test_activations_and_gradients_are_those_of_torch() -> None:
    torch.manual_seed(0)
    x, bias = torch.randn(5, 2, 6, requires_grad=True), torch.randn(6, requires_grad=True)
    got, expected = bias_gelu(x, bias), F.gelu(x + bias)
    assert torch.equal(got, expected)
    assert not torch.allclose(got, F.gelu(x + bias, approximate="tanh"), atol=1e-5, rtol=0)
    upstream = torch.randn(5, 2, 6)
    gradients = torch.autograd.grad(got, (x, bias), upstream)
    wanted = torch.autograd.grad(expected, (x, bias), upstream)
    assert all(map(torch.equal, gradients, wanted))


def test_triton_kernels_in_their_interpreter() -> None:
    assert run_interpreted("gelu") == 6
