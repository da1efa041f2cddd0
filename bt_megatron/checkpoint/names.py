# SPDX-License-Identifier: Apache-2.0
"""Canonical weight names and the names of the reference and of GPT-NeoX checkpoints.

One table per component, {i} for the layer. Block models have the reference's names
(reference: model/block_transformer.py), vanilla models those of
transformers' GPTNeoXForCausalLM. Where the two sides differ in more than the name,
the row carries a transform.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bt_megatron.checkpoint.transforms import (
    POINT_CONV,
    SAME,
    BlockConv,
    FusedHeads,
    Shape,
    Transform,
)
from bt_megatron.config.geometry import T5_BUCKETS, expanded_vectors, pooled_vectors
from bt_megatron.config.schema import DecoderConfig, EmbedderConfig, ModelConfig
from bt_megatron.errors import ConversionError

IGNORED = re.compile(
    r"^block_decoder\.gpt_neox\.embed_in\.weight$"  # the reference saves it and never uses it
    r"|\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)$"  # buffers of old transformers
)
"""Official names that hold nothing a model needs."""

NORM_AND_LINEAR = ("weight", "bias")

GPT_NEOX_LAYER = {
    "input_layernorm": "input_layernorm",
    "self_attention.linear_qkv": "attention.query_key_value",
    "self_attention.linear_proj": "attention.dense",
    "pre_mlp_layernorm": "post_attention_layernorm",
    "mlp.linear_fc1": "mlp.dense_h_to_4h",
    "mlp.linear_fc2": "mlp.dense_4h_to_h",
}
ROBERTA_LAYER = {
    "self_attention.linear_proj": "attention.output.dense",
    "input_layernorm": "attention.output.LayerNorm",
    "mlp.linear_fc1": "intermediate.dense",
    "mlp.linear_fc2": "output.dense",
    "pre_mlp_layernorm": "output.LayerNorm",
}
ROBERTA_FUSED = ("query", "key", "value")
ROBERTA_TABLES = {
    "word": "word_embeddings",
    "position": "position_embeddings",
    "token_type": "token_type_embeddings",
}
T5_LAYER = {
    "input_layernorm": "layer.0.layer_norm",
    "self_attention.linear_proj": "layer.0.SelfAttention.o",
    "pre_cross_attn_layernorm": "layer.1.layer_norm",
    "cross_attention.linear_q": "layer.1.EncDecAttention.q",
    "cross_attention.linear_proj": "layer.1.EncDecAttention.o",
    "pre_mlp_layernorm": "layer.2.layer_norm",
    "mlp.linear_fc1": "layer.2.DenseReluDense.wi",
    "mlp.linear_fc2": "layer.2.DenseReluDense.wo",
}
T5_TABLE = (
    "token_decoder.shared.weight",
    "token_decoder.decoder.embed_tokens.weight",
    "token_decoder.lm_head.weight",
)
"""One table under three names; a file need not hold all of them."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One canonical weight and its counterpart."""

    canonical: str
    """Canonical name."""
    official: tuple[str, ...]
    """Official names, in the order of the transform."""
    shape: Shape
    """Shape of the canonical weight, vocabulary not padded."""
    transform: Transform = SAME
    """From one side to the other."""
    is_table: bool = False
    """Whether the first axis is the vocabulary, which training may have padded."""
    is_tied: bool = False
    """Whether the official names are one tensor under several names."""


def entries(model: ModelConfig) -> list[Entry]:
    """Return all weights of a model.

    Raises:
        ConversionError: if the model has a part that the official format cannot express.
    """
    if not model.is_block:
        assert model.decoder is not None, "a vanilla model has a decoder"
        return [
            *_tables("token_embedding", "gpt_neox.embed_in", model, model.decoder),
            *_gpt_neox("decoder", "gpt_neox", model.decoder),
            *_tables("head", "embed_out", model, model.decoder),
        ]
    assert model.embedder is not None, "a block model has an embedder"
    assert model.block_decoder is not None, "a block model has a block decoder"
    assert model.token_decoder is not None, "a block model has a token decoder"
    embedder = _lookup if model.embedder.kind == "lookup" else _roberta
    token_decoder = _t5 if model.token_decoder.strategy == "cross_attention" else _token_decoder
    return [
        *embedder(model, model.embedder),
        *_gpt_neox("block_decoder", "block_decoder.gpt_neox", model.block_decoder),
        *_expansion(model, model.block_decoder),
        *token_decoder(model, model.token_decoder),
    ]


def _tables(
    canonical: str, official: str, model: ModelConfig, stack: DecoderConfig
) -> Iterator[Entry]:
    shape = (model.vocab_size, stack.hidden_size)
    yield Entry(f"{canonical}.weight", (f"{official}.weight",), shape, is_table=True)


def _lookup(model: ModelConfig, embedder: EmbedderConfig) -> Iterator[Entry]:
    shape = (model.vocab_size, embedder.hidden_size)
    names = ("embedder.embeddings.weight",)
    yield Entry("embedder.table.weight", names, shape, is_table=True)
    if embedder.projection:
        yield from _projection(model, embedder, model.block_length)


def _projection(model: ModelConfig, embedder: EmbedderConfig, taps: int) -> Iterator[Entry]:
    assert model.block_decoder is not None, "a block model has a block decoder"
    width = model.block_decoder.hidden_size
    ours, theirs = "embedder.projection", "embedder.projection_layer"
    shape = (width, taps * embedder.hidden_size)
    yield Entry(f"{ours}.weight", (f"{theirs}.weight",), shape, BlockConv(taps))
    yield Entry(f"{ours}.bias", (f"{theirs}.bias",), (width,))


def _roberta(model: ModelConfig, embedder: EmbedderConfig) -> Iterator[Entry]:
    width = embedder.hidden_size
    rows = {"word": model.vocab_size, "position": embedder.max_positions, "token_type": 1}
    for ours, theirs in ROBERTA_TABLES.items():
        names = (f"embedder.embeddings.{theirs}.weight",)
        shape = (rows[ours], width)
        yield Entry(f"embedder.{ours}.weight", names, shape, is_table=ours == "word")
    for part in NORM_AND_LINEAR:
        names = (f"embedder.embeddings.LayerNorm.{part}",)
        yield Entry(f"embedder.norm.{part}", names, (width,))
    stack = DecoderConfig(
        num_layers=embedder.num_layers,
        hidden_size=width,
        num_attention_heads=embedder.num_attention_heads,
        ffn_hidden_size=embedder.ffn_hidden_size,
    )
    fused = FusedHeads(embedder.num_attention_heads, 3)
    for layer in range(embedder.num_layers):
        ours, theirs = f"embedder.encoder.layers.{layer}.", f"embedder.encoder.layer.{layer}."
        yield from _renamed(ours, theirs, ROBERTA_LAYER, stack)
        for part, fused_shape in (("weight", (3 * width, width)), ("bias", (3 * width,))):
            parts = tuple(f"{theirs}attention.self.{kind}.{part}" for kind in ROBERTA_FUSED)
            yield Entry(f"{ours}self_attention.linear_qkv.{part}", parts, fused_shape, fused)
    yield from _projection(model, embedder, pooled_vectors(model))


def _expansion(model: ModelConfig, block: DecoderConfig) -> Iterator[Entry]:
    assert model.token_decoder is not None, "a block model has a token decoder"
    rows = expanded_vectors(model) * model.token_decoder.hidden_size
    theirs = "token_decoder.expansion_layer"
    weight = (rows, block.hidden_size)
    yield Entry("expansion.weight", (f"{theirs}.weight",), weight, POINT_CONV)
    yield Entry("expansion.bias", (f"{theirs}.bias",), (rows,))


def _token_decoder(model: ModelConfig, stack: DecoderConfig) -> Iterator[Entry]:
    yield from _tables("token_embedding", "token_decoder.gpt_neox.embed_in", model, stack)
    yield from _gpt_neox("token_decoder", "token_decoder.gpt_neox", stack)
    yield from _tables("head", "token_decoder.embed_out", model, stack)


def _t5(model: ModelConfig, stack: DecoderConfig) -> Iterator[Entry]:
    if (stack.normalization, stack.activation, stack.bias) != ("rmsnorm", "relu", False):
        raise ConversionError(
            "model.token_decoder: a cross_attention token decoder is a T5 decoder, with "
            f"normalization rmsnorm, activation relu and bias false; this one has "
            f"{stack.normalization}, {stack.activation} and {str(stack.bias).lower()}. "
            "It has no official form."
        )
    heads, width = stack.num_attention_heads, stack.hidden_size
    table = (model.vocab_size, width)
    yield Entry("token_embedding.weight", T5_TABLE, table, is_table=True, is_tied=True)
    theirs = "token_decoder.decoder.block.{}."
    bias = f"{theirs.format(0)}layer.0.SelfAttention.relative_attention_bias.weight"
    yield Entry("relative_bias.weight", (bias,), (T5_BUCKETS, heads))
    for layer in range(stack.num_layers):
        ours, block = f"token_decoder.layers.{layer}.", theirs.format(layer)
        yield from _renamed(ours, block, T5_LAYER, stack)
        for name, attention, parts in (
            ("self_attention.linear_qkv", "layer.0.SelfAttention", "qkv"),
            ("cross_attention.linear_kv", "layer.1.EncDecAttention", "kv"),
        ):
            names = tuple(f"{block}{attention}.{part}.weight" for part in parts)
            shape = (len(parts) * width, width)
            fused = FusedHeads(heads, len(parts))
            yield Entry(f"{ours}{name}.weight", names, shape, fused)
    norm = "final_layernorm.weight", "decoder.final_layer_norm.weight"
    yield Entry(f"token_decoder.{norm[0]}", (f"token_decoder.{norm[1]}",), (width,))


def _gpt_neox(ours: str, theirs: str, stack: DecoderConfig) -> Iterator[Entry]:
    for layer in range(stack.num_layers):
        prefixes = f"{ours}.layers.{layer}.", f"{theirs}.layers.{layer}."
        yield from _renamed(*prefixes, GPT_NEOX_LAYER, stack)
    final = {"final_layernorm": "final_layer_norm"}
    yield from _renamed(f"{ours}.", f"{theirs}.", final, stack)


def _renamed(
    ours: str, theirs: str, table: Mapping[str, str], stack: DecoderConfig
) -> Iterator[Entry]:
    for canonical, official in table.items():
        has_bias = stack.normalization == "layernorm" if "norm" in canonical else stack.bias
        shape = _shape(canonical, stack)
        for part in NORM_AND_LINEAR if has_bias else ("weight",):
            names = (f"{theirs}{official}.{part}",)
            yield Entry(
                f"{ours}{canonical}.{part}", names, shape if part == "weight" else shape[:1]
            )


def _shape(module: str, stack: DecoderConfig) -> Shape:
    width, inner = stack.hidden_size, stack.ffn_size
    if "norm" in module:
        return (width,)
    heads_and_groups = stack.num_attention_heads + 2 * stack.query_groups
    return {
        "self_attention.linear_qkv": (heads_and_groups * stack.head_dim, width),
        "self_attention.linear_proj": (width, width),
        "cross_attention.linear_q": (width, width),
        "cross_attention.linear_proj": (width, width),
        "mlp.linear_fc1": (2 * inner if stack.activation == "swiglu" else inner, width),
        "mlp.linear_fc2": (width, inner),
    }[module]


def to_official(canonical: Mapping[str, Tensor], model: ModelConfig) -> dict[str, Tensor]:
    """Rename canonical weights; rows that pad the vocabulary are cut.

    Args:
        canonical: whole weights by canonical name.
        model: the model they belong to.

    Returns:
        Weights by official name. Tied names share one tensor.

    Raises:
        ConversionError: listing every unknown, missing or wrongly shaped weight.
    """
    table = entries(model)
    problems = _unknown(canonical, {entry.canonical for entry in table})
    for entry in table:
        weight = canonical.get(entry.canonical)
        problems += _shape_problem(entry.canonical, weight, entry.shape, padded=entry.is_table)
    _raise_if_any(problems, "canonical weights")
    official: dict[str, Tensor] = {}
    for entry in table:
        weight = canonical[entry.canonical]
        weight = weight[: model.vocab_size] if entry.is_table else weight
        parts = entry.transform.split(weight)
        parts = parts * len(entry.official) if entry.is_tied else parts
        official |= dict(zip(entry.official, parts, strict=True))
    return official


def from_official(official: Mapping[str, Tensor], model: ModelConfig) -> dict[str, Tensor]:
    """Rename official weights; what no model needs (`IGNORED`) is dropped.

    Args:
        official: weights by official name.
        model: the model they belong to.

    Returns:
        Weights by canonical name.

    Raises:
        ConversionError: listing every unknown, missing or wrongly shaped weight.
    """
    table = entries(model)
    given = {name: weight for name, weight in official.items() if not IGNORED.search(name)}
    problems = _unknown(given, {name for entry in table for name in entry.official})
    for entry in table:
        problems += _tie_problems(entry, given) if entry.is_tied else _part_problems(entry, given)
    _raise_if_any(problems, "official weights")
    return {
        entry.canonical: entry.transform.join(
            [given[name] for name in entry.official if name in given]
        )
        for entry in table
    }


def _unknown(weights: Mapping[str, Tensor], known: set[str]) -> list[str]:
    return [f"{name}: not a weight of this model" for name in sorted(set(weights) - known)]


def _shape_problem(
    name: str, weight: Tensor | None, shape: Shape, *, padded: bool = False
) -> list[str]:
    if weight is None:
        return [f"{name}: missing"]
    got = tuple(weight.shape)
    if got == shape or (padded and got[1:] == shape[1:] and got[0] >= shape[0]):
        return []
    return [f"{name}: shape {list(got)}, the model's is {list(shape)}"]


def _part_problems(entry: Entry, given: Mapping[str, Tensor]) -> list[str]:
    shapes = entry.transform.shapes(entry.shape)
    return [
        problem
        for name, shape in zip(entry.official, shapes, strict=True)
        for problem in _shape_problem(name, given.get(name), shape)
    ]


def _tie_problems(entry: Entry, given: Mapping[str, Tensor]) -> list[str]:
    present = [name for name in entry.official if name in given]
    if not present:
        return [f"{entry.official[0]}: missing"]
    problems = [
        problem for name in present for problem in _shape_problem(name, given[name], entry.shape)
    ]
    first = given[present[0]]
    differing = [name for name in present[1:] if not torch.equal(given[name], first)]
    return problems or [f"{name}: differs from {present[0]}, its tied weight" for name in differing]


def _raise_if_any(problems: list[str], what: str) -> None:
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise ConversionError(
            f"{len(problems)} {what} do not fit the model section:\n{listed}\n"
            "Use the model section that the weights were made with."
        )
