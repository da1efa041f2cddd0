# SPDX-License-Identifier: Apache-2.0
"""AdamW with the interface and state of Transformer Engine's FusedAdam, in plain torch.

Megatron's distributed optimizer can only be checkpointed with that layout (the
step lives in the parameter group, the state is `exp_avg` and `exp_avg_sq`):
with torch's AdamW saving asserts before the first step and a loaded `step`
tensor ends up shared between parameters. Checkpoints written here therefore
have the layout that they have on GPUs.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch


class FusedAdam(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter 2019, algorithm 2), one parameter after the other."""

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
        """Take FusedAdam's arguments; those that only concern CUDA are accepted and not used."""
        assert bias_correction, "the run never turns bias correction off"
        assert adam_w_mode, "the run never asks for L2 regularisation"
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "bias_correction": bias_correction})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            for param in group["params"]:
                if param.grad is not None:
                    self._update(param, group)

    def _update(self, param: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[param]
        if not state:
            state["exp_avg"] = torch.zeros_like(param)
            state["exp_avg_sq"] = torch.zeros_like(param)
        beta1, beta2 = group["betas"]
        correction1 = 1 - beta1 ** group["step"]
        correction2 = 1 - beta2 ** group["step"]
        param.mul_(1 - group["lr"] * group["weight_decay"])
        state["exp_avg"].lerp_(param.grad, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(param.grad, param.grad, value=1 - beta2)
        root = (state["exp_avg_sq"] / correction2).sqrt_().add_(group["eps"])
        param.addcdiv_(state["exp_avg"], root, value=-group["lr"] / correction1)


def install() -> None:
    """Make Megatron-Core use this class where neither Transformer Engine nor Apex is usable."""
    import megatron.core.optimizer as optimizer
    import megatron.core.optimizer.distrib_optimizer as distributed

    if not optimizer.USING_PYTORCH_OPTIMIZER:
        return
    optimizer.Adam = FusedAdam
    optimizer.USING_PYTORCH_OPTIMIZER = False
    distributed.Adam = FusedAdam
    distributed.HAVE_APEX_OR_TE = True
    distributed.USING_APEX_OPTIMIZER = True
