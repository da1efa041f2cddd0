# SPDX-License-Identifier: Apache-2.0
"""Layer specs of Transformer Engine. Imported only where it works.

Against specs.py: gradients of weights are added to the float32 buffer by the product itself, and a
norm is part of something larger. With sequential residual that is the linear layer behind it; with
parallel residual the other norm of the same rows (kernels/norm_pair.py). Attention is the same:
Transformer Engine's was slower at every length measured, and in a fixed order of sums it takes
memory with the square of the length (docs/benchmarks/attention.json). Weights have the same
checkpoint keys.

The bias of the first feed-forward layer is added by GELU (feed_forward.py), which sums the bias's
gradient on its way; before other activations the product adds it, which costs nothing forward.

Under FP8 a linear layer keeps a copy of its weight in FP8, from the first micro-batch of a step
to the last. Megatron's schedules mark the first (`set_is_first_microbatch`).
"""

import functools
from typing import Any

import torch
from megatron.core.extensions.transformer_engine import (
    TEColumnParallelLinear,
    TELayerNormColumnParallelLinear,
    TENorm,
    TERowParallelLinear,
)
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules
from torch import Tensor
from torch.nn import functional as F

from bt_megatron.model.feed_forward import FeedForward
from bt_megatron.model.layers import residual_add
from bt_megatron.model.specs import Residual, feed_forward, norm_class, self_attention
from bt_megatron.model.transformer_config import StackConfig
from bt_megatron.model.weight_names import FUSED_NORMS

FINAL_NORM = TENorm

Linear = type[TEColumnParallelLinear] | type[TELayerNormColumnParallelLinear]


class _CachedWeight:
    """A linear layer whose copy of the weight in FP8 is that of the step, never an older one.

    Told of the first micro-batch, Transformer Engine would refresh its copy too, but also have
    the backward pass of that micro-batch overwrite main_grad. Here it finds no copy, makes one
    as it does for any micro-batch, and gradients add up in whatever order they come.
    """

    is_first_microbatch: bool
    _fp8_workspaces: dict[str, Any]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Run the layer; see the other base class.

        Comm: that of the other base class.
        """
        if self.is_first_microbatch:
            self._fp8_workspaces.clear()
            self.is_first_microbatch = False
        return super().forward(x)  # type: ignore[misc,no-any-return]


class Fp8ColumnLinear(_CachedWeight, TEColumnParallelLinear):
    """Linear layer whose outputs are dealt out, with its product in FP8."""


class Fp8NormLinear(_CachedWeight, TELayerNormColumnParallelLinear):
    """Norm and linear layer, with its product in FP8."""


class Fp8RowLinear(_CachedWeight, TERowParallelLinear):
    """Linear layer over inputs that are dealt out, with its product in FP8."""


def te_submodules(config: StackConfig, *, residual: Residual) -> TransformerLayerSubmodules:
    """Return the submodules of a GPT-NeoX or Llama layer.

    Args:
        config: Megatron config of the stack.
        residual: how the layer's parts are joined.
    """
    is_parallel = residual == "parallel"
    norm = norm_class(config) if is_parallel else IdentityOp
    linear: Linear = TEColumnParallelLinear if is_parallel else TELayerNormColumnParallelLinear
    row_linear = TERowParallelLinear
    if config.fp8:
        linear = Fp8ColumnLinear if is_parallel else Fp8NormLinear
        row_linear = Fp8RowLinear
    return TransformerLayerSubmodules(
        input_layernorm=norm,
        self_attention=self_attention(config, linear, row_linear),
        self_attn_bda=residual_add,
        pre_mlp_layernorm=norm,
        mlp=_mlp(config, linear, row_linear),
        mlp_bda=residual_add,
        sharded_state_dict_keys_map=FUSED_NORMS if is_parallel else {},
    )


def _mlp(
    config: StackConfig, linear: Linear, row_linear: type[TERowParallelLinear]
) -> functools.partial[MLP]:
    has_gelu = config.activation_func is F.gelu and config.add_bias_linear
    submodules = MLPSubmodules(
        linear_fc1=linear if has_gelu else functools.partial(_with_bias, linear),
        linear_fc2=row_linear,
    )
    kind = FeedForward if has_gelu else feed_forward(config)
    return functools.partial(kind.as_mlp_submodule, submodules=submodules)


def _with_bias(linear: Linear, *sizes: int, **settings: Any) -> torch.nn.Module:
    return linear(*sizes, **{**settings, "skip_bias_add": False})
