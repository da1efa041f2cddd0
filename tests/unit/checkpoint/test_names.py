# SPDX-License-Identifier: Apache-2.0
"""Official names to canonical ones and back, exactly, and every misfit reported."""

import re
from dataclasses import replace

import pytest
import torch

from bt_megatron.checkpoint.names import entries, from_official, to_official
from bt_megatron.config.schema import (
    DecoderConfig,
    EmbedderConfig,
    ModelConfig,
    TokenDecoderConfig,
)
from bt_megatron.errors import ConversionError
from tests.golden import BLOCK_MODELS, UNUSED, load_golden

MODELS = (*BLOCK_MODELS, "vanilla_neox")
LAYER_MODULES = (
    "input_layernorm",
    "self_attention.linear_qkv",
    "self_attention.linear_proj",
    "pre_mlp_layernorm",
    "mlp.linear_fc1",
    "mlp.linear_fc2",
)


@pytest.mark.parametrize("name", MODELS)
def test_round_trip_is_exact(name):
    golden = load_golden(name)
    canonical = from_official(golden.state, golden.model)
    official = to_official(canonical, golden.model)
    assert set(official) == set(golden.state) - {UNUSED}
    for key, weight in official.items():
        assert torch.equal(weight, golden.state[key]), key
    again = from_official(official, golden.model)
    assert all(torch.equal(again[key], weight) for key, weight in canonical.items())


@pytest.mark.parametrize("name", MODELS)
def test_canonical_shapes(name):
    golden = load_golden(name)
    canonical = from_official(golden.state, golden.model)
    shapes = {entry.canonical: entry.shape for entry in entries(golden.model)}
    assert {key: tuple(weight.shape) for key, weight in canonical.items()} == shapes


def test_names_of_the_main_model():
    layer = [f"{m}.{part}" for m in LAYER_MODULES for part in ("weight", "bias")]
    stacks = [
        f"{stack}.{rest}"
        for stack in ("block_decoder", "token_decoder")
        for rest in (
            *(f"layers.{i}.{name}" for i in range(2) for name in layer),
            "final_layernorm.weight",
            "final_layernorm.bias",
        )
    ]
    others = [
        "embedder.table.weight",
        "expansion.weight",
        "expansion.bias",
        "token_embedding.weight",
        "head.weight",
    ]
    names = [entry.canonical for entry in entries(load_golden("lookup_prefix_b4_p2").model)]
    assert sorted(names) == sorted(stacks + others)


def test_other_layers_have_their_own_shapes():
    stack = {
        "num_layers": 1,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_query_groups": 2,
        "ffn_hidden_size": 48,
        "normalization": "rmsnorm",
        "activation": "swiglu",
        "bias": False,
    }
    model = ModelConfig(
        vocab_size=10,
        embedder=EmbedderConfig(hidden_size=8),
        block_decoder=DecoderConfig(**stack),
        token_decoder=TokenDecoderConfig(**stack),
    )
    shapes = {entry.canonical: entry.shape for entry in entries(model)}
    assert shapes["block_decoder.layers.0.self_attention.linear_qkv.weight"] == (64, 32)
    assert shapes["block_decoder.layers.0.mlp.linear_fc1.weight"] == (96, 32)
    assert not [name for name in shapes if name.endswith("bias") and name != "expansion.bias"]


def test_vocabulary_padding_is_cut():
    golden = load_golden("lookup_prefix_b4_p2")
    canonical = from_official(golden.state, golden.model)
    for name in ("embedder.table.weight", "token_embedding.weight", "head.weight"):
        rows = canonical[name]
        canonical[name] = torch.cat([rows, torch.full_like(rows[:8], 7.0)])
    official = to_official(canonical, golden.model)
    for key, weight in official.items():
        assert torch.equal(weight, golden.state[key]), key


def test_all_misfits_are_listed():
    golden = load_golden("lookup_prefix_b4_p2")
    state = dict(golden.state)
    del state["token_decoder.embed_out.weight"]
    state["something.else"] = torch.zeros(1)
    state["token_decoder.expansion_layer.bias"] = torch.zeros(64)
    with pytest.raises(ConversionError) as error:
        from_official(state, golden.model)
    message = str(error.value)
    assert message.startswith("3 official weights")
    assert "token_decoder.embed_out.weight: missing" in message
    assert "something.else: not a weight of this model" in message
    assert re.search(r"expansion_layer\.bias: shape \[64\], the model's is \[128\]", message)


def test_misfits_of_canonical_weights():
    golden = load_golden("lookup_prefix_b4_p2")
    canonical = from_official(golden.state, golden.model)
    canonical["head.weight"] = canonical["head.weight"][:500]
    canonical["surplus"] = torch.zeros(1)
    with pytest.raises(ConversionError, match=r"(?s)2 canonical weights.*surplus.*\[500, 64\]"):
        to_official(canonical, golden.model)


def test_tied_table_may_be_stored_once():
    golden = load_golden("roberta_cls_cross_attention_b4")
    state = dict(golden.state)
    for name in ("token_decoder.shared.weight", "token_decoder.decoder.embed_tokens.weight"):
        del state[name]
    canonical = from_official(state, golden.model)
    assert torch.equal(canonical["token_embedding.weight"], state["token_decoder.lm_head.weight"])


def test_tied_tables_must_be_equal():
    golden = load_golden("roberta_cls_cross_attention_b4")
    state = dict(golden.state)
    state["token_decoder.lm_head.weight"] = state["token_decoder.lm_head.weight"] + 1
    with pytest.raises(ConversionError, match="differs from token_decoder.shared.weight"):
        from_official(state, golden.model)


def test_old_buffers_are_dropped():
    golden = load_golden("vanilla_neox")
    state = dict(golden.state)
    for name in ("bias", "masked_bias", "rotary_emb.inv_freq"):
        state[f"gpt_neox.layers.0.attention.{name}"] = torch.zeros(1)
    assert len(from_official(state, golden.model)) == len(golden.state)


def test_another_t5_has_no_official_form():
    golden = load_golden("roberta_cls_cross_attention_b4")
    decoder = replace(golden.model.token_decoder, activation="gelu")
    with pytest.raises(ConversionError, match="this one has rmsnorm, gelu and false"):
        entries(replace(golden.model, token_decoder=decoder))
