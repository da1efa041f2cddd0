# SPDX-License-Identifier: Apache-2.0
"""AdamW with the interface and state of Transformer Engine's FusedAdam, by torch's fused kernel.

Megatron's distributed optimizer can only be checkpointed with that layout (the
step lives in the parameter group, the state is `exp_avg` and `exp_avg_sq`):
with torch's AdamW saving asserts before the first step and a loaded `step`
tensor ends up shared between parameters. Checkpoints are the same on CPU and GPU.

Against Transformer Engine's own: an `UpdateGate` decides on the device whether the step
counts and how gradients are clipped, so the host need not wait for the loss, and clipping costs
no pass over the gradients. Learning rate and step are read from the device as well: a CUDA
graph of a step can be replayed at any step.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from bt_megatron.parallel.update_gate import UpdateGate


class FusedAdam(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter 2019, algorithm 2).

    A step is `count` (the host's part: numbers) and `step` (what the device does).

    Attributes:
        gate: decides whether a step counts; set it before the first step.
    """

    gate: UpdateGate

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        bias_correction: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        adam_w_mode: bool = True,
        **_unused: Any,
    ) -> None:
        """Take FusedAdam's arguments; those that only concern its kernels are not used."""
        assert bias_correction, "the run never turns bias correction off"
        assert adam_w_mode, "the run never asks for L2 regularisation"
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "bias_correction": bias_correction})
        self._on_device: dict[int, tuple[Tensor, Tensor]] = {}

    def count(self, lr: float) -> None:
        """Begin a step: it is the next one, at this learning rate.

        Args:
            lr: learning rate of the step.
        """
        for number, group in enumerate(self.param_groups):
            group["lr"], group["step"] = lr, group.get("step", 0) + 1
            self._write(number, group)

    def take_back(self) -> None:
        """Forget the step that was counted last; the gate did not let it through."""
        for number, group in enumerate(self.param_groups):
            group["step"] -= 1
            self._write(number, group)

    def _write(self, number: int, group: dict[str, Any]) -> None:
        """Put learning rate and step where the device reads them."""
        if number not in self._on_device:
            device = self.gate.closed.device
            self._on_device[number] = torch.zeros((), device=device), torch.zeros((), device=device)
        lr, step = self._on_device[number]
        lr.fill_(group["lr"])
        step.fill_(group["step"])

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient, if the gate lets it."""
        for number, group in enumerate(self.param_groups):
            params = [param for param in group["params"] if param.grad is not None]
            if params:
                self._update(params, group, *self._on_device[number])

    def _update(
        self, params: list[Tensor], group: dict[str, Any], lr: Tensor, step: Tensor
    ) -> None:
        beta1, beta2 = group["betas"]
        states = [self._state_of(param) for param in params]
        torch._fused_adamw_(
            params,
            [param.grad for param in params],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [step] * len(params),
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
            grad_scale=self.gate.divisor,
            found_inf=self.gate.closed,
        )

    def _state_of(self, param: Tensor) -> dict[str, Tensor]:
        state = self.state[param]
        if not state:
            state["exp_avg"] = torch.zeros_like(param)
            state["exp_avg_sq"] = torch.zeros_like(param)
        return state


def fused_adams(optimizer: Any) -> list[FusedAdam]:
    """Return those inside Megatron's optimizer; it has none where a rank has no weights."""
    inner = [part.optimizer for part in getattr(optimizer, "chained_optimizers", [optimizer])]
    return [adam for adam in inner if isinstance(adam, FusedAdam)]


def install() -> None:
    """Make Megatron-Core use this class, whether Transformer Engine is there or not."""
    import megatron.core.optimizer as optimizer
    import megatron.core.optimizer.distrib_optimizer as distributed

    optimizer.Adam = FusedAdam
    distributed.Adam = FusedAdam
    if optimizer.USING_PYTORCH_OPTIMIZER:
        optimizer.USING_PYTORCH_OPTIMIZER = False
        distributed.HAVE_APEX_OR_TE = True
        distributed.USING_APEX_OPTIMIZER = True
