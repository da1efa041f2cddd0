# SPDX-License-Identifier: Apache-2.0
"""Weights of a Block Transformer made from a vanilla model's, to train on from there.

Method `partition` of the reference (model/utils.py; paper, uptraining): the lower
layers become the block decoder, the upper ones the token decoder, a block vector
starts as the mean of its token vectors, and every prefix as the context embedding.
"""

from collections.abc import Iterator, Mapping
from dataclasses import fields

import torch
from torch import Tensor

from bt_megatron.checkpoint.names import entries
from bt_megatron.config.schema import DecoderConfig, ModelConfig, TokenDecoderConfig
from bt_megatron.errors import ConversionError

OWN_FIELDS = ("num_layers", "strategy", "prefix_length", "dropout")
"""Settings in which a decoder of the block model may differ from the vanilla stack."""
FILLED_IN = {"num_query_groups": "query_groups", "ffn_hidden_size": "ffn_size"}
"""Settings with a default that follows from others, and the property that fills it in."""


def partition(
    weights: Mapping[str, Tensor], vanilla: ModelConfig, target: ModelConfig
) -> dict[str, Tensor]:
    """Make the weights of a block model from those of a vanilla model.

    Embedder table, input and output tables and the final norm of the token decoder are the
    vanilla model's. The projection is identity / k at each of the k taps with bias 0, the
    expansion the identity repeated p times with bias 0, the block decoder's final norm 1 and 0.

    Args:
        weights: of the vanilla model, by canonical name.
        vanilla: the vanilla model.
        target: the block model, with a lookup embedder with projection and prefix decoding.

    Returns:
        Weights of the block model, by canonical name.

    Raises:
        ConversionError: listing all reasons why the models do not fit together.
    """
    problems = list(_misfits(vanilla, target))
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise ConversionError(f"the vanilla model cannot become this block model:\n{listed}")
    assert target.block_decoder is not None, "checked above"
    lower = target.block_decoder.num_layers
    like = weights["token_embedding.weight"]
    made = _new_weights(target, like)
    for entry in entries(target):
        name = entry.canonical
        if name not in made:
            made[name] = weights[_source_name(name, lower)].clone()
    return made


def _source_name(name: str, lower: int) -> str:
    """Return the vanilla weight that a weight of the block model starts from."""
    parts = name.split(".")
    if name == "embedder.table.weight":
        return "token_embedding.weight"
    if parts[:2] == ["block_decoder", "layers"]:
        return ".".join(["decoder", *parts[1:]])
    if parts[:2] == ["token_decoder", "layers"]:
        return ".".join(["decoder", "layers", str(int(parts[2]) + lower), *parts[3:]])
    return name.replace("token_decoder.", "decoder.")  # final norm, tables and head


def _new_weights(target: ModelConfig, like: Tensor) -> dict[str, Tensor]:
    assert target.block_decoder is not None, "checked by partition"
    assert target.token_decoder is not None, "checked by partition"
    width, vectors = target.block_decoder.hidden_size, target.token_decoder.prefix_length
    identity = torch.eye(width, dtype=like.dtype)
    made = {
        "embedder.projection.weight": (identity / target.block_length).repeat(
            1, target.block_length
        ),
        "embedder.projection.bias": like.new_zeros(width),
        "expansion.weight": identity.repeat(vectors, 1),
        "expansion.bias": like.new_zeros(vectors * width),
        "block_decoder.final_layernorm.weight": like.new_ones(width),
    }
    if target.block_decoder.normalization == "layernorm":
        made["block_decoder.final_layernorm.bias"] = like.new_zeros(width)
    return made


def _misfits(vanilla: ModelConfig, target: ModelConfig) -> Iterator[str]:
    stack, embedder = vanilla.decoder, target.embedder
    block, token = target.block_decoder, target.token_decoder
    if stack is None or embedder is None or block is None or token is None:
        yield (
            f"the source is a {vanilla.architecture} model and the target a "
            f"{target.architecture} model; uptraining goes from vanilla to block"
        )
        return
    if target.vocab_size != vanilla.vocab_size:
        yield f"vocab_size is {target.vocab_size}, the vanilla model's is {vanilla.vocab_size}"
    if embedder.kind != "lookup" or not embedder.projection:
        yield "embedder: it must be a lookup with projection: true"
    elif embedder.hidden_size != stack.hidden_size:
        yield (
            f"embedder.hidden_size is {embedder.hidden_size}, the vanilla model's tables are "
            f"{stack.hidden_size} wide"
        )
    if token.strategy != "prefix":
        yield f"token_decoder.strategy is {token.strategy}, only prefix can start from a copy"
    if block.num_layers + token.num_layers != stack.num_layers:
        yield (
            f"block_decoder.num_layers ({block.num_layers}) + token_decoder.num_layers "
            f"({token.num_layers}) is not the vanilla depth ({stack.num_layers})"
        )
    yield from _differences("block_decoder", block, stack)
    yield from _differences("token_decoder", token, stack)


def _differences(
    name: str, part: DecoderConfig | TokenDecoderConfig, stack: DecoderConfig
) -> Iterator[str]:
    for item in fields(DecoderConfig):
        if item.name in OWN_FIELDS or getattr(part, item.name) == getattr(stack, item.name):
            continue
        key = FILLED_IN.get(item.name, item.name)
        ours, theirs = getattr(part, key), getattr(stack, key)
        if ours == theirs:
            continue
        why = ""
        if item.name == "num_attention_heads":
            why = "; the fused projections of the heads would be scrambled"
        yield f"{name}.{item.name} is {ours}, the vanilla model's is {theirs}{why}"
