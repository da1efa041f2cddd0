# SPDX-License-Identifier: Apache-2.0
"""The feed-forward part of a layer, where Megatron-Core's does not fit."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from megatron.core.fusions.fused_bias_swiglu import bias_swiglu_impl
from megatron.core.transformer.mlp import MLP
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from bt_megatron.kernels.gelu import bias_gelu


class FeedForward(MLP):
    """fc2(activation(fc1 x + b)), its activation fused with b and computed again if so configured.

    Megatron-Core's own fusion of bias and GELU is the tanh approximation. And it keeps what
    enters fc2, a quarter of what a GPT-NeoX layer keeps in all, although it is a function of
    the output of fc1, which is kept anyway, and costs one pass over it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what MLP takes."""
        super().__init__(*args, **kwargs)
        if self.config.recompute_activation and self.config.fp8:
            # Else fc2 keeps its input in FP8, scaled and turned round. It does the same with the
            # original in the backward pass, bit for bit.
            self.linear_fc2.save_original_input = True

    def forward(self, hidden_states: Tensor, **_unused: Any) -> tuple[Tensor, Tensor | None]:
        """Run the feed-forward part.

        Args:
            hidden_states: [s/t, b, h] under sequence parallelism, else [s, b, h].

        Returns:
            The same shape, and the bias [h] that is still to be added.

        Comm: the tensor-parallel collectives of the linear layers.
        """
        product, bias = self.linear_fc1(hidden_states)  # [s, b, f/t], gated 2 f/t; [f/t]
        activated = self._activate(product, bias)
        if not self.config.recompute_activation:
            return self.linear_fc2(activated)
        with computed_again(activated, lambda: self._activate(product.detach(), bias)):
            return self.linear_fc2(activated)

    def _activate(self, product: Tensor, bias: Tensor | None) -> Tensor:
        if not self.config.gated_linear_unit:
            if self.activation_func is F.gelu and bias is not None:
                return bias_gelu(product, bias)
            return self.activation_func(product if bias is None else product + bias)
        if self.config.bias_activation_fusion:
            return bias_swiglu_impl(product, bias)
        gate, up = (product if bias is None else product + bias).chunk(2, dim=-1)
        return self.activation_func(gate) * up


def computed_again(
    value: Tensor, compute: Callable[[], Tensor]
) -> AbstractContextManager[saved_tensors_hooks]:
    """Have operations inside the context keep no copy of a value for their backward passes.

    Args:
        value: what they would keep, as a whole and in any shape.
        compute: gives the same value once more, bit for bit; called in the backward pass.

    Comm: none.
    """
    place, count = value.data_ptr(), value.numel()

    def pack(kept: Tensor) -> Tensor | torch.Size:
        # Not of a subclass: weights, and FP8 tensors, which have no address of their own.
        is_value = type(kept) is Tensor and kept.data_ptr() == place and kept.numel() == count
        return kept.shape if is_value else kept

    def unpack(packed: Tensor | torch.Size) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        with torch.no_grad():
            return compute().view(packed)

    return saved_tensors_hooks(pack, unpack)
