# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from bt_megatron.parallel.fused_adam import FusedAdam, fused_adams
from bt_megatron.parallel.update_gate import UpdateGate

ONE = torch.tensor(1.0)


def adam_of(params: list[torch.Tensor], **settings: float) -> FusedAdam:
    adam = FusedAdam(params, **settings)
    adam.gate = UpdateGate("cpu")
    return adam


def give_gradients(*models: list[torch.Tensor]) -> None:
    for params in zip(*models, strict=True):
        gradient = torch.randn_like(params[0])
        for param in params:
            param.grad = gradient.clone()


@pytest.mark.parametrize("clip_norm", [0.0, 0.5, 100.0])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_updates_are_those_of_torch_adamw(weight_decay: float, clip_norm: float) -> None:
    settings = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": weight_decay}
    torch.manual_seed(0)
    ours = [torch.randn(5, 3), torch.randn(7)]
    theirs = [tensor.clone() for tensor in ours]
    adam, other = adam_of(ours, **settings), torch.optim.AdamW(theirs, **settings)
    for step in range(5):
        lr = 1e-2 / (step + 1)
        give_gradients(ours, theirs)
        norm = torch.nn.utils.get_total_norm([param.grad for param in ours])
        if clip_norm:
            torch.nn.utils.clip_grad_norm_(theirs, clip_norm)
        targets = torch.tensor(7.0)  # gradients come as sums over them
        for param in ours:
            param.grad *= targets
        adam.gate.set(torch.tensor(2.0), targets, norm * targets, clip_norm=clip_norm)
        adam.count(lr)
        adam.step()
        for group in other.param_groups:
            group["lr"] = lr
        other.step()
    for one, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, reference, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("loss", "norm"), [("nan", "1"), ("inf", "1"), ("2", "nan"), ("2", "inf")])
def test_a_step_that_is_not_finite_changes_nothing(loss: str, norm: str) -> None:
    torch.manual_seed(0)
    ours = [torch.randn(5, 3)]
    undisturbed = [tensor.clone() for tensor in ours]
    disturbed_adam, adam = adam_of(ours, lr=0.1), adam_of(undisturbed, lr=0.1)
    for step in range(3):
        give_gradients(ours, undisturbed)
        for optimizer in (disturbed_adam, adam):
            optimizer.gate.set(torch.tensor(2.0), ONE, ONE, clip_norm=1.0)
            optimizer.count(0.1)
            optimizer.step()
        if step == 1:
            ours[0].grad.fill_(float("nan"))
            numbers = torch.tensor(float(loss)), ONE, torch.tensor(float(norm))
            disturbed_adam.gate.set(*numbers, clip_norm=1.0)
            disturbed_adam.count(0.1)
            disturbed_adam.step()
            disturbed_adam.take_back()
    assert torch.equal(ours[0], undisturbed[0])
    for name in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(disturbed_adam.state[ours[0]][name], adam.state[undisturbed[0]][name])
    assert disturbed_adam.param_groups[0]["step"] == adam.param_groups[0]["step"] == 3


def test_state_has_the_layout_that_megatron_checkpoints() -> None:
    param = torch.ones(3)
    adam = adam_of([param], lr=0.1)
    param.grad = torch.ones(3)
    adam.count(0.1)
    adam.step()
    assert set(adam.state[param]) == {"exp_avg", "exp_avg_sq"}
    assert adam.param_groups[0]["step"] == 1
    assert adam.param_groups[0]["lr"] == 0.1


def test_parameters_without_gradient_stay() -> None:
    param = torch.ones(3)
    adam = adam_of([param], lr=0.1, weight_decay=0.5)
    adam.count(0.1)
    adam.step()
    assert torch.equal(param, torch.ones(3))


def test_a_rank_without_weights_has_no_adam() -> None:
    class Stub:
        optimizer = None

    assert fused_adams(Stub()) == []
