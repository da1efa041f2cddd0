# SPDX-License-Identifier: Apache-2.0
"""Rotary angles for heads whose dimensions 2i and 2i+1 are rotated together."""

import torch
from torch import Tensor

from bt_megatron.inference.engine.shapes import StackShape


def make_angles(shape: StackShape, positions: int, device: torch.device) -> Tensor:
    """Return cosines and sines [2, positions, d/2] float32; angle 0 for what is not rotated."""
    width = shape.rotary_width
    exponents = torch.arange(0, width, 2, dtype=torch.float32) / max(width, 1)
    rates = torch.zeros(shape.head_dim // 2)
    rates[: shape.rotated // 2] = shape.rotary_base**-exponents
    angles = torch.outer(torch.arange(positions, dtype=torch.float32), rates)
    return torch.stack([angles.cos(), angles.sin()]).to(device)
