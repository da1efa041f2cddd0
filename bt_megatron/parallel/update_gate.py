# SPDX-License-Identifier: Apache-2.0
"""Whether an optimizer step changes anything, and what gradients are divided by.

Both follow from a loss, a norm and a number of targets that only the device knows while the
host is already launching the update. So the answer stays on the device, where the update reads
it: a step whose loss or gradient is not finite, or whose loss is too large, leaves weights and
moments as they are, bit for bit, and the mean over targets and clipping cost no pass over the
gradients.
"""

import torch
from torch import Tensor

CLIP_EPSILON = 1e-6
"""Added to the norm, as in torch's clip_grad_norm_ and Megatron's clip_grads.py."""


class UpdateGate:
    """What the update of a step reads.

    Attributes:
        closed: [1] float32, 1 if nothing may change, else 0.
        divisor: [1] float32, what gradients are divided by.
        max_loss: [1] float64, mean loss above which nothing may change.
    """

    def __init__(self, device: torch.device | str | int) -> None:
        """Start open, without clipping.

        Args:
            device: where the optimizer is.
        """
        self.closed = torch.zeros(1, device=device)
        self.divisor = torch.ones(1, device=device)
        self.max_loss = torch.full((1,), float("inf"), dtype=torch.float64, device=device)

    def set(self, loss: Tensor, targets: Tensor, norm: Tensor, *, clip_norm: float) -> Tensor:
        """Decide about a step, without waiting for the device.

        Args:
            loss: sum of the losses of all targets; one element.
            targets: their number; one element.
            norm: norm of the gradient of that sum; one element.
            clip_norm: what the norm of the gradient of the mean is clipped to; 0: it is not.

        Returns:
            [1] float32, the norm of the gradient of the mean, before clipping.

        Comm: none; all three are the same on every rank, so the ranks agree.
        """
        finite = loss.reshape(1).isfinite() & norm.reshape(1).isfinite()
        count = targets.reshape(1).clamp_min(1)
        self.closed.copy_(~(finite & (loss.reshape(1) / count <= self.max_loss)))
        mean_norm = (norm.reshape(1) / count).float()
        # Clipped by a factor of at most 1; not finite if the norm is not, and then closed.
        excess = ((mean_norm + CLIP_EPSILON) / clip_norm).clamp_min(1.0) if clip_norm > 0 else 1.0
        self.divisor.copy_(count * excess)
        return mean_norm
