# SPDX-License-Identifier: Apache-2.0
"""Layer specs of Transformer Engine. Imported only where it works.

Against specs.py: a norm and the linear layer behind it are one module, causal attention is
cuDNN's or flash attention, and gradients of weights are added to the float32 buffer by the
product itself. Weights have the same checkpoint keys.

The bias of the first feed-forward layer is added by its product, which costs nothing, and not
with the activation, as Megatron-Core does by default: its fused GELU is the tanh approximation,
ours is the exact one. So the activation is one pass of torch's own kernel.
"""

import functools
from typing import Any

import torch
from megatron.core.extensions.transformer_engine import (
    TEDotProductAttention,
    TELayerNormColumnParallelLinear,
    TENorm,
    TERowParallelLinear,
)
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules
from torch import Tensor

from bt_megatron.model.attention import CausalAttention, FoldedAttention
from bt_megatron.model.layers import residual_add
from bt_megatron.model.transformer_config import StackConfig

FINAL_NORM = TENorm


class MaskableAttention(TEDotProductAttention):  # type: ignore[misc]
    """Causal attention of Transformer Engine; ours where blocks are hidden (evaluation only)."""

    def __init__(
        self, config: StackConfig, *, softmax_scale: float | None = None, **settings: Any
    ) -> None:
        """Take what Megatron's attention hands over.

        Args:
            config: Megatron config of the stack.
            softmax_scale: factor of the scores; none: head width ** -0.5.
            settings: layer number, mask type, process groups.
        """
        super().__init__(config, softmax_scale=softmax_scale, **settings)
        self.masked = CausalAttention(config, softmax_scale=softmax_scale)
        # A resumed run is the undisturbed one bit for bit: no sums in the order of arrival. Before
        # Hopper cuDNN has no such backward pass, and asking for it would select an attention
        # that keeps all scores; there, resumed runs agree to rounding.
        if torch.cuda.get_device_capability() >= (9, 0):
            for module in (self, self.fused_attention, self.flash_attention):
                module.deterministic = True

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **settings: Any,
    ) -> Tensor:
        """Attend; arguments and result as CausalAttention.

        Comm: that of context parallelism, if it is used.
        """
        if attention_mask is not None:
            return self.masked(query, key, value, attention_mask)
        return super().forward(query, key, value, None, **settings)


def te_submodules(config: StackConfig) -> TransformerLayerSubmodules:
    """Return the submodules of a GPT-NeoX or Llama layer.

    Args:
        config: Megatron config of the stack.
    """
    attention = ModuleSpec(
        module=SelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(
            linear_qkv=TELayerNormColumnParallelLinear,
            core_attention=FoldedAttention if config.fold_positions else MaskableAttention,
            linear_proj=TERowParallelLinear,
            q_layernorm=IdentityOp,
            k_layernorm=IdentityOp,
        ),
    )
    return TransformerLayerSubmodules(
        input_layernorm=IdentityOp,
        self_attention=attention,
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
