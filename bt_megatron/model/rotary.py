# SPDX-License-Identifier: Apache-2.0
"""Rotary position angles (Su et al. 2021), rotate-half form, as GPT-NeoX has them."""

import torch
from torch import Tensor

from bt_megatron.config.schema import DecoderConfig


def rotary_angles(
    positions: Tensor, *, head_dim: int, fraction: float, base: float
) -> Tensor | None:
    """Return the angles that Megatron's attention applies to queries and keys.

    Only the first int(fraction * head_dim) dimensions of a head are rotated
    (reference: rotary_pct 0.25); tables are float32.

    Args:
        positions: [s] position of each row.
        head_dim: width of a head.
        fraction: part of the head that is rotated; 0 turns rotation off.
        base: base of the frequencies.

    Returns:
        [s, 1, 1, rotated], or None if nothing is rotated.
    """
    rotated = int(fraction * head_dim)
    if rotated == 0:
        return None
    exponents = torch.arange(0, rotated, 2, dtype=torch.float32, device=positions.device)
    frequencies = base ** (-exponents / rotated)
    angles = torch.outer(positions.float(), frequencies)  # [s, rotated / 2]
    return torch.cat((angles, angles), dim=-1)[:, None, None, :]


def position_angles(decoder: DecoderConfig, positions: Tensor) -> Tensor | None:
    """Return the rotary angles [s, 1, 1, rotated] of `positions` [s], or None without rotation."""
    return rotary_angles(
        positions,
        head_dim=decoder.head_dim,
        fraction=decoder.rotary_fraction,
        base=decoder.rotary_base,
    )
