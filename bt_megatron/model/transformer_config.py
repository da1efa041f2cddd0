# SPDX-License-Identifier: Apache-2.0
"""From our frozen configuration to Megatron-Core's TransformerConfig.

One config per stack: the two decoders and the RoBERTa encoder differ in width,
layers and dropout, but share layout and precision.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from megatron.core.tensor_parallel import layers as megatron_layers
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.nn import functional as F

from bt_megatron.config.schema import (
    DecoderConfig,
    EmbedderConfig,
    LayoutConfig,
    MemoryConfig,
    TokenDecoderConfig,
)
from bt_megatron.model.fp8 import Fp8, fp8_settings
from bt_megatron.model.layer_library import LayerLibrary

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "swiglu": F.silu,
}


@dataclass
class StackConfig(TransformerConfig):
    """TransformerConfig of one stack, with what our attention needs to know."""

    fold_positions: int | None = None
    """Positions per block when the rows of a sequence are q * n; none: one causal sequence."""
    bidirectional: bool = False
    """Whether positions see later ones (RoBERTa)."""
    token_kernel: bool = False
    """Whether one kernel computes the attention of a folded stack."""
    fixed_order: bool = True
    """Whether causal attention sums its gradients in a fixed order."""
    norm_pair: bool = False
    """Whether both norms of a layer with parallel residual are one operation."""
    recompute_activation: bool = False
    """Whether feed-forward layers compute their activation again in the backward pass."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Computation:
    """How a stage computes."""

    dtype: torch.dtype = torch.float32
    """Of parameters and of what crosses pipeline stages."""
    layers: LayerLibrary = "torch"
    """Library of the decoders' layers (`layer_library.choose_layers`)."""
    fp8: Fp8 = "none"
    """How Transformer Engine layers scale the factors of their products (`kernels.fp8`)."""
    token_attention: Literal["auto", "torch", "triton"] = "auto"
    """Who computes the attention of the token decoder (`kernels.token_attention`)."""
    deterministic: bool = True
    """Whether sums have a fixed order (`kernels.deterministic`)."""
    head_chunk_rows: int | None = None
    """Rows of logits at a time in the loss (`kernels.head_chunk_tokens`)."""
    memory: MemoryConfig = MemoryConfig()  # noqa: RUF009  frozen
    """What is computed again in the backward pass."""

    @property
    def is_bf16(self) -> bool:
        """Whether weights and activations are bf16."""
        return self.dtype == torch.bfloat16


def shared_settings(layout: LayoutConfig, how: Computation) -> dict[str, Any]:
    """Return the settings that every stack has: layout, how, no fusions that need CUDA.

    Weights are not drawn here (perform_initialization=False): `initialize.py`
    draws them by name, so that they do not depend on the layout.
    """
    return {
        "tensor_model_parallel_size": layout.tp,
        "sequence_parallel": layout.sequence_parallel,
        "pipeline_model_parallel_size": layout.pp,
        "pipeline_dtype": how.dtype,
        **_interleaving(layout),
        "params_dtype": how.dtype,
        "bf16": how.is_bf16,
        "autocast_dtype": how.dtype,
        "perform_initialization": False,
        "use_cpu_initialization": not torch.cuda.is_available(),
        "calculate_per_token_loss": True,
        "batch_p2p_comm": False,
        "deallocate_pipeline_outputs": layout.pp > 1,
        "persist_layer_norm": False,
        "gradient_accumulation_fusion": has_fused_accumulation(),
        "transformer_impl": "local",
    }


def recomputation(memory: MemoryConfig, *, in_slices: bool = False) -> dict[str, Any]:
    """Return the settings of a stack of which something is computed again in backward.

    Args:
        memory: what is computed again.
        in_slices: whether the stack runs in slices (slices.py), which compute all of it again.
    """
    if memory.recompute != "full" or in_slices:
        return {"recompute_activation": memory.recompute == "selective"}
    return {
        "recompute_granularity": "full",
        "recompute_method": "uniform",
        "recompute_num_layers": 1,
    }


def _interleaving(layout: LayoutConfig) -> dict[str, Any]:
    """Return what virtual stages need.

    Both kinds of messages cross: [n, b, g] and [q*n, b, h]; so each is preceded by its shape
    (`variable_seq_lengths`, which Megatron ties to this token dispatcher). Overlapped p2p:
    with two processes the default, batched p2p, mixes up the two directions silently.
    """
    if layout.vpp == 1:
        return {}
    return {
        "virtual_pipeline_model_parallel_size": layout.vpp,
        "overlap_p2p_comm": True,
        "variable_seq_lengths": True,
        "moe_token_dispatcher_type": "alltoall",
    }


def has_fused_accumulation() -> bool:
    """Return whether Megatron's own linear layers can add gradients to float32 buffers in place.

    That is a kernel of NVIDIA's Apex, `fused_weight_gradient_mlp_cuda`.
    """
    return torch.cuda.is_available() and megatron_layers._grad_accum_fusion_available


def transformer_engine_settings(decoder: DecoderConfig, fp8: Fp8 = "none") -> dict[str, Any]:
    """Return what changes in the settings of a stack of Transformer Engine layers."""
    return {
        "transformer_impl": "transformer_engine",
        "apply_rope_fusion": True,
        "bias_dropout_fusion": True,  # our own, see layers.py
        "norm_pair": True,
        # Megatron's fused SwiGLU is exact; its fused GELU is the tanh approximation, so there is
        # our own (feed_forward.py).
        "bias_activation_fusion": decoder.activation == "swiglu",
        # Else the first backward pass of a micro batch that was the first forward overwrites
        # main_grad: wrong gradients wherever backward passes come in another order. What it
        # would cache, FP8 copies of weights, does not exist in bf16; with FP8 see te_specs.py.
        "disable_parameter_transpose_cache": fp8 == "none",
        **fp8_settings(fp8),
    }


def decoder_stack(
    decoder: DecoderConfig,
    layout: LayoutConfig,
    how: Computation,
    *,
    dropout: float = 0.0,
    **changes: Any,
) -> StackConfig:
    """Return the Megatron config of a GPT-NeoX-like stack.

    A T5 decoder is always of plain torch modules: it has cross-attention and a relative bias.
    """
    is_t5 = isinstance(decoder, TokenDecoderConfig) and decoder.strategy == "cross_attention"
    settings = shared_settings(layout, how)
    if how.layers == "transformer_engine" and not is_t5:
        settings |= transformer_engine_settings(decoder, how.fp8)
    return StackConfig(
        num_layers=decoder.num_layers,
        hidden_size=decoder.hidden_size,
        num_attention_heads=decoder.num_attention_heads,
        num_query_groups=decoder.query_groups,
        ffn_hidden_size=decoder.ffn_size,
        normalization="LayerNorm" if decoder.normalization == "layernorm" else "RMSNorm",
        layernorm_epsilon=decoder.norm_epsilon,
        activation_func=ACTIVATIONS[decoder.activation],
        fixed_order=how.deterministic,
        gated_linear_unit=decoder.activation == "swiglu",
        add_bias_linear=decoder.bias,
        hidden_dropout=dropout,
        attention_dropout=dropout,
        **{**settings, **changes},
    )


def encoder_stack(
    embedder: EmbedderConfig, layout: LayoutConfig, how: Computation, *, positions: int
) -> StackConfig:
    """Return the Megatron config of the RoBERTa encoder over `positions` rows per block.

    It runs without sequence parallelism, its output is one vector per block, and always of
    plain torch modules, since norms follow what they would have to be fused with.
    """
    return StackConfig(
        num_layers=embedder.num_layers,
        hidden_size=embedder.hidden_size,
        num_attention_heads=embedder.num_attention_heads,
        ffn_hidden_size=embedder.ffn_hidden_size,
        hidden_dropout=embedder.dropout,
        attention_dropout=embedder.dropout,
        fold_positions=positions,
        bidirectional=True,
        **{
            **shared_settings(layout, how),
            "sequence_parallel": False,
            "pipeline_model_parallel_size": 1,
            "virtual_pipeline_model_parallel_size": None,
        },
    )


def without_sequence_parallel(config: StackConfig) -> StackConfig:
    """Return the config for a linear layer whose input is whole on every rank."""
    changed = copy.copy(config)
    changed.sequence_parallel = False
    return changed


def with_fused_accumulation(config: StackConfig) -> StackConfig:
    """Return the config for Transformer Engine layers, which bring that kernel along."""
    changed = copy.copy(config)
    changed.gradient_accumulation_fusion = True
    return changed
