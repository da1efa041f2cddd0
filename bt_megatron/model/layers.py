# SPDX-License-Identifier: Apache-2.0
"""Transformer layers and norms that Megatron-Core does not have."""

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor

from bt_megatron.kernels.norm_pair import norm_pair
from bt_megatron.kernels.residual import Part, residual_sum


def _mark_sequence_parallel(norm: torch.nn.Module, config: TransformerConfig) -> None:
    # finalize_model_grads sums the gradients of marked parameters over the tp group.
    for param in norm.parameters():
        param.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


class LayerNorm(torch.nn.LayerNorm):
    """LayerNorm with bias; Megatron's local one refuses sequence parallelism."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        _mark_sequence_parallel(self, config)


class RmsNorm(torch.nn.RMSNorm):
    """RMSNorm without bias."""

    bias: None = None

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        _mark_sequence_parallel(self, config)


class ParallelResidualLayer(TransformerLayer):
    """GPT-NeoX layer: x + attn(ln1 x) + mlp(ln2 x), both norms on the same x."""

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        context: Tensor | None = None,
        rotary_pos_emb: Tensor | None = None,
        attention_bias: Tensor | None = None,
        **_unused: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Run the layer.

        Args:
            hidden_states: [s/t, b, h] under sequence parallelism, else [s, b, h].
            attention_mask: what the core attention takes.
            context: handed through.
            rotary_pos_emb: [s, 1, 1, rotated] angles.
            attention_bias: what the core attention takes.

        Returns:
            [s/t, b, h] and the context.

        Comm: the tensor-parallel collectives of the linear layers.
        """
        hidden_states, for_attention, for_mlp = self._normalize(hidden_states)
        attention = self.self_attention(
            for_attention,
            attention_mask=attention_mask,
            rotary_pos_emb=rotary_pos_emb,
            attention_bias=attention_bias,
        )
        mlp = self.mlp(for_mlp)
        if self.config.bias_dropout_fusion and not (self.training and self.hidden_dropout):
            return residual_sum(hidden_states, attention, mlp), context
        update = _with_bias(*mlp) + _with_bias(*attention)
        add = self.self_attn_bda(self.training, self.config.bias_dropout_fusion)
        return add((update, None), hidden_states, self.hidden_dropout), context

    def _normalize(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first, second = self.input_layernorm, self.pre_mlp_layernorm
        if not self.config.norm_pair:
            return hidden_states, first(hidden_states), second(hidden_states)
        affine = (first.weight, first.bias), (second.weight, second.bias)
        return norm_pair(hidden_states, *affine, eps=first.eps)


def residual_add(training: bool, fused: bool) -> Callable[[Part, Tensor, float], Tensor]:
    """Return the function with which Megatron's layer adds a part to the residual stream.

    Args:
        training: whether dropout is drawn.
        fused: whether bias and residual are added in one pass where nothing is dropped.
    """
    separate = get_bias_dropout_add(training, False)

    def add(part: Part, residual: Tensor, dropout: float) -> Tensor:
        if fused and not (training and dropout):
            return residual_sum(residual, part)
        return separate(part, residual, dropout)

    return add


def _with_bias(output: Tensor, bias: Tensor | None) -> Tensor:
    return output if bias is None else output + bias


class PostNormLayer(TransformerLayer):
    """RoBERTa layer: x = ln1(x + attn x), then x = ln2(x + mlp x).

    `input_layernorm` is the norm after attention and `pre_mlp_layernorm` the
    one after the feed-forward part; the names are Megatron's.
    """

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        context: Tensor | None = None,
        **_unused: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Run the layer on [s, b, h]; arguments as ParallelResidualLayer.

        Comm: the tensor-parallel collectives of the linear layers.
        """
        attention = self.self_attention(hidden_states, attention_mask=attention_mask)
        add_attention = self.self_attn_bda(self.training, self.config.bias_dropout_fusion)
        hidden_states = self.input_layernorm(
            add_attention(attention, hidden_states, self.hidden_dropout)
        )
        mlp = self.mlp(hidden_states)
        add_mlp = self.mlp_bda(self.training, self.config.bias_dropout_fusion)
        return self.pre_mlp_layernorm(add_mlp(mlp, hidden_states, self.hidden_dropout)), context
