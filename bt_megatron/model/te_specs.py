# SPDX-License-Identifier: Apache-2.0
"""Layer specs of Transformer Engine. Imported only where it works.

Against specs.py: a norm and the linear layer behind it are one module, and gradients of weights
are added to the float32 buffer by the product itself. Attention is the same: Transformer Engine's
was slower at every length measured, and in a fixed order of sums it takes memory with the square
of the length (docs/benchmarks/attention.json). Weights have the same checkpoint keys.

The bias of the first feed-forward layer is added by its product, which costs nothing, and not
with the activation, as Megatron-Core does by default: its fused GELU is the tanh approximation,
ours is the exact one. So the activation is one pass of torch's own kernel.
"""

import functools
from typing import Any

from megatron.core.extensions.transformer_engine import (
    TELayerNormColumnParallelLinear,
    TENorm,
    TERowParallelLinear,
)
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules

from bt_megatron.model.layers import residual_add
from bt_megatron.model.specs import self_attention
from bt_megatron.model.transformer_config import StackConfig

FINAL_NORM = TENorm


def te_submodules(config: StackConfig) -> TransformerLayerSubmodules:
    """Return the submodules of a GPT-NeoX or Llama layer.

    Args:
        config: Megatron config of the stack.
    """
    return TransformerLayerSubmodules(
        input_layernorm=IdentityOp,
        self_attention=self_attention(config, TELayerNormColumnParallelLinear, TERowParallelLinear),
        self_attn_bda=residual_add,
        pre_mlp_layernorm=IdentityOp,
        mlp=functools.partial(
            MLP.as_mlp_submodule,
            submodules=MLPSubmodules(linear_fc1=_linear_fc1, linear_fc2=TERowParallelLinear),
        ),
        mlp_bda=residual_add,
    )


def _linear_fc1(*sizes: int, **settings: Any) -> TELayerNormColumnParallelLinear:
    return TELayerNormColumnParallelLinear(*sizes, **{**settings, "skip_bias_add": False})
