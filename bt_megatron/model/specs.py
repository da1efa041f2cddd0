# SPDX-License-Identifier: Apache-2.0
"""Layer specs: which modules a stack of layers is made of.

Here those of plain torch; those of Transformer Engine are in te_specs.py. Module names are
Megatron's local ones. Checkpoint keys use the names of Transformer Engine's fused modules
(`sharded_state_dict_keys_map`), so that a checkpoint does not depend on the implementation.
"""

import functools
from typing import Literal

from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import (
    CrossAttention,
    CrossAttentionSubmodules,
    SelfAttention,
    SelfAttentionSubmodules,
)
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_layer import (
    TransformerLayer,
    TransformerLayerSubmodules,
)

from bt_megatron.model.attention import CausalAttention, FoldedAttention, FoldedCrossAttention
from bt_megatron.model.feed_forward import FeedForward
from bt_megatron.model.folded_self_attention import FoldedSelfAttention
from bt_megatron.model.layers import LayerNorm, ParallelResidualLayer, PostNormLayer, RmsNorm
from bt_megatron.model.transformer_config import StackConfig
from bt_megatron.model.weight_names import FUSED_NORMS

Residual = Literal["parallel", "sequential", "post_norm"]

LAYER_CLASSES = {
    "parallel": ParallelResidualLayer,
    "sequential": TransformerLayer,
    "post_norm": PostNormLayer,
}


def stack_spec(
    config: StackConfig, *, num_layers: int, residual: Residual, cross_attention: bool = False
) -> TransformerBlockSubmodules:
    """Return the spec of `num_layers` equal layers and the final norm.

    Args:
        config: Megatron config of the stack.
        num_layers: layers on this pipeline stage.
        residual: how a layer's parts are joined.
        cross_attention: whether each layer also attends to a context (T5 decoder).
    """
    if config.transformer_impl == "transformer_engine":
        from bt_megatron.model import te_specs  # here: it can be imported only where it works

        submodules = te_specs.te_submodules(config, residual=residual)
        layer = ModuleSpec(LAYER_CLASSES[residual], submodules=submodules)
        return TransformerBlockSubmodules([layer] * num_layers, layer_norm=te_specs.FINAL_NORM)
    layer = _layer_spec(config, residual=residual, cross_attention=cross_attention)
    return TransformerBlockSubmodules(
        layer_specs=[layer] * num_layers, layer_norm=norm_class(config)
    )


def norm_class(config: StackConfig) -> type[LayerNorm] | type[RmsNorm]:
    """Return the class of the norms of a stack."""
    return LayerNorm if config.normalization == "LayerNorm" else RmsNorm


def _layer_spec(config: StackConfig, *, residual: Residual, cross_attention: bool) -> ModuleSpec:
    norm = norm_class(config)
    submodules = TransformerLayerSubmodules(
        input_layernorm=norm,
        self_attention=self_attention(config, ColumnParallelLinear, RowParallelLinear),
        self_attn_bda=get_bias_dropout_add,
        pre_mlp_layernorm=norm,
        mlp=functools.partial(
            feed_forward(config).as_mlp_submodule,
            submodules=MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear),
        ),
        mlp_bda=get_bias_dropout_add,
        sharded_state_dict_keys_map={} if residual == "post_norm" else FUSED_NORMS,
        **(_cross_attention(norm) if cross_attention else {}),
    )
    return ModuleSpec(module=LAYER_CLASSES[residual], submodules=submodules)


def feed_forward(config: StackConfig) -> type[MLP]:
    """Return the class of the feed-forward layers of a stack."""
    return FeedForward if config.recompute_activation else MLP


def self_attention(config: StackConfig, linear_qkv: type, linear_proj: type) -> ModuleSpec:
    """Return the spec of self-attention between two linear layers.

    Args:
        config: Megatron config of the stack.
        linear_qkv: class of the projection to queries, keys and values.
        linear_proj: class of the projection back.
    """
    return ModuleSpec(
        module=FoldedSelfAttention if config.fold_positions else SelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(
            linear_qkv=linear_qkv,
            core_attention=FoldedAttention if config.fold_positions else CausalAttention,
            linear_proj=linear_proj,
            q_layernorm=IdentityOp,
            k_layernorm=IdentityOp,
        ),
    )


def _cross_attention(norm: type) -> dict[str, object]:
    spec = ModuleSpec(
        module=CrossAttention,
        params={"attn_mask_type": AttnMaskType.padding},
        submodules=CrossAttentionSubmodules(
            linear_q=ColumnParallelLinear,
            linear_kv=ColumnParallelLinear,
            core_attention=FoldedCrossAttention,
            linear_proj=RowParallelLinear,
        ),
    )
    return {
        "pre_cross_attn_layernorm": norm,
        "cross_attention": spec,
        "cross_attn_bda": get_bias_dropout_add,
    }
