# SPDX-License-Identifier: Apache-2.0
"""Initial weights, drawn by name so that they do not depend on the parallel layout.

Normal(0, 0.02) for linear layers and tables, zeros for biases, ones for norms,
the expansion Normal(0, g^-0.5) and projections Normal(0, inputs^-0.5), no depth
scaling (reference: transformers' defaults and model/token_decoder). The T5 token
decoder has T5's own deviations (transformers: T5PreTrainedModel._init_weights,
factor 1).
"""

import hashlib

import torch
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from bt_megatron.config.geometry import is_t5
from bt_megatron.config.schema import ModelConfig
from bt_megatron.model.named_weights import Shard, named_shards, whole_weight


@torch.no_grad()
def initialize_weights(stage: MegatronModule, model: ModelConfig, *, seed: int) -> None:
    """Draw the weights of a stage.

    Each rank draws the whole of a weight it holds a part of: the cost is a few
    seconds for a billion parameters, once.

    Comm: none.
    """
    for shard in named_shards(stage):
        weight = initial_weight(shard, model, seed=seed)
        shard.data.copy_(weight[shard.place])


def initial_weight(shard: Shard, model: ModelConfig, *, seed: int) -> Tensor:
    """Return the whole initial value of a weight, float32, on CPU."""
    shape = shard.whole_shape
    if "norm" in shard.name:
        return torch.ones(shape) if shard.name.endswith("weight") else torch.zeros(shape)
    if shard.name.endswith("bias"):
        return torch.zeros(shape)
    digest = hashlib.sha256(f"{seed}:{shard.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    if shard.is_vocabulary_table:
        shape = (model.vocab_size, *shape[1:])
    weight = torch.randn(shape, generator=generator)
    weight = weight * standard_deviation(shard.name, shape, model)
    return whole_weight(shard, _soften_t5_queries(weight, shard.name, model))


def standard_deviation(name: str, shape: tuple[int, ...], model: ModelConfig) -> float:
    """Return the standard deviation of a weight matrix.

    Args:
        name: canonical name.
        shape: [outputs, inputs] or [rows, width].
        model: the model.
    """
    if name in ("expansion.weight", "embedder.projection.weight"):
        return float(shape[1]) ** -0.5
    if is_t5(model):
        if name == "token_embedding.weight":
            return 1.0
        if name == "relative_bias.weight":
            assert model.token_decoder is not None, "T5 is a token decoder"
            return model.token_decoder.hidden_size**-0.5
        if name.startswith("token_decoder."):
            return float(shape[1]) ** -0.5
    return model.init_std


def _soften_t5_queries(weight: Tensor, name: str, model: ModelConfig) -> Tensor:
    """Scale T5's query rows by head width ** -0.5: T5 has that instead of a softmax scale."""
    if not is_t5(model) or not name.startswith("token_decoder."):
        return weight
    assert model.token_decoder is not None, "T5 is a token decoder"
    head_dim = model.token_decoder.head_dim
    if name.endswith("cross_attention.linear_q.weight"):
        return weight * head_dim**-0.5
    if name.endswith("self_attention.linear_qkv.weight"):
        by_head = weight.view(-1, 3, head_dim, weight.shape[1]).clone()
        by_head[:, 0] *= head_dim**-0.5
        return by_head.view_as(weight)
    return weight
