# SPDX-License-Identifier: Apache-2.0
"""Products with weights, in the model's precision or in FP8 (e4m3, Hopper).

FP8 has one scale per weight matrix. What it is multiplied with is stored as e4m3
directly: a floating-point format has the same relative error at any scale, normalised
states lie within +-sqrt(h), and anything beyond 448 is clamped. On a CPU the same products
are computed in float32, to see what FP8 costs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0


@dataclass(frozen=True, slots=True)
class Linear:
    """y = x W^T + b."""

    weight: Tensor
    """[n, k]"""
    bias: Tensor | None
    """[n] in the precision of y"""
    scale: Tensor | None = None
    """[] float32: W = weight * scale; None unless the weight is FP8"""
    unit: Tensor | None = None
    """[] float32 one, the scale of x under FP8"""
    sums: Tensor | None = None
    """[2, n] float32: the scale of each row of W, and the sum of the row; on a GPU"""

    @property
    def input_type(self) -> torch.dtype:
        """Return the type that x must have."""
        return self.weight.dtype

    def rows(self, first: int, end: int) -> "Linear":
        """Return the product that gives y[:, first:end] only."""
        bias = None if self.bias is None else self.bias[first:end]
        return Linear(self.weight[first:end], bias, self.scale, self.unit)

    def __call__(self, x: Tensor, out_type: torch.dtype) -> Tensor:
        """Multiply: [M, k] -> [M, n]."""
        if self.scale is None:
            if self.bias is None:
                return x @ self.weight.T
            return torch.addmm(self.bias, x, self.weight.T)
        return self._multiply_fp8(x, self.bias, out_type)

    def add_to(self, total: Tensor, x: Tensor) -> None:
        """Add x W^T to `total` [M, n] in place; the bias is not added."""
        if self.scale is None:
            total.addmm_(x, self.weight.T)
        else:
            total += self._multiply_fp8(x, None, total.dtype)

    def _multiply_fp8(self, x: Tensor, bias: Tensor | None, out_type: torch.dtype) -> Tensor:
        if not x.is_cuda:
            y = x.float() @ (self.weight.float() * self.scale).T
            return (y if bias is None else y + bias.float()).to(out_type)
        return torch._scaled_mm(
            x,
            self.weight.T,
            scale_a=self.unit,
            scale_b=self.scale,
            bias=bias,
            out_dtype=out_type,
            use_fast_accum=True,
        )


def make_linear(weight: Tensor, bias: Tensor | None, dtype: torch.dtype, *, fp8: bool) -> Linear:
    """Store a product.

    Args:
        weight: [n, k] float32.
        bias: [n] float32.
        dtype: of y, and of the weight unless `fp8`.
        fp8: store the weight in e4m3 with one scale.
    """
    bias = None if bias is None else bias.to(dtype).contiguous()
    scale, unit = None, None
    if fp8:
        scale = (weight.abs().max().clamp(min=1e-12) / FP8_MAX).float()
        unit = torch.ones((), device=weight.device)
        kept = (weight / scale).to(FP8).contiguous()
    else:
        kept = weight.to(dtype).contiguous()
    sums = None
    if weight.is_cuda:
        factor = torch.ones(weight.shape[0], device=weight.device) * (
            1.0 if scale is None else scale
        )
        sums = torch.stack([factor, kept.float().sum(1) * factor])
    return Linear(kept, bias, scale, unit, sums)
