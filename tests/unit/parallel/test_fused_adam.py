# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from bt_megatron.parallel.fused_adam import FusedAdam


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_updates_are_those_of_torch_adamw(weight_decay: float) -> None:
    settings = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": weight_decay}
    torch.manual_seed(0)
    ours = [torch.randn(5, 3), torch.randn(7)]
    theirs = [tensor.clone() for tensor in ours]
    optimizers = FusedAdam(ours, **settings), torch.optim.AdamW(theirs, **settings)
    for _ in range(5):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_state_has_the_layout_that_megatron_checkpoints() -> None:
    param = torch.ones(3)
    optimizer = FusedAdam([param], lr=0.1)
    param.grad = torch.ones(3)
    optimizer.step()
    assert set(optimizer.state[param]) == {"exp_avg", "exp_avg_sq"}
    assert optimizer.param_groups[0]["step"] == 1


def test_parameters_without_gradient_stay() -> None:
    param = torch.ones(3)
    FusedAdam([param], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(param, torch.ones(3))
