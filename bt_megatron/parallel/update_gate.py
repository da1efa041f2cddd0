# SPDX-License-Identifier: Apache-2.0
"""Whether an optimizer step changes anything, and by how much gradients are clipped.

Both follow from a loss and a norm that only the device knows while the host is already
launching the update. So the answer stays on the device, where the update reads it: a step
whose loss or gradient is not finite leaves weights and moments as they are, bit for bit.
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
    """

    def __init__(self, device: torch.device | str | int) -> None:
        """Start open, without clipping.

        Args:
            device: where the optimizer is.
        """
        self.closed = torch.zeros(1, device=device)
        self.divisor = torch.ones(1, device=device)

    def set(self, loss: Tensor, norm: Tensor, *, clip_norm: float) -> None:
        """Decide about a step, without waiting for the device.

        Args:
            loss: the loss, a sum or a mean; one element.
            norm: norm of the gradient; one element.
            clip_norm: the norm that gradients are clipped to; 0: they are not.

        Comm: none; loss and norm are the same on every rank, so the ranks agree.
        """
        finite = loss.reshape(1).isfinite() & norm.reshape(1).isfinite()
        self.closed.copy_(~finite)
        if clip_norm > 0:
            # Clipped by a factor of at most 1; not finite if the norm is not, and then closed.
            self.divisor.copy_(((norm.reshape(1) + CLIP_EPSILON) / clip_norm).clamp_min(1.0))
