# SPDX-License-Identifier: Apache-2.0
"""Checkpoint keys are the same for both libraries of layers, and hold weights only."""

import pytest

from bt_megatron.config.geometry import layer_letters
from bt_megatron.config.schema import LayoutConfig
from bt_megatron.model.build import build_stage
from bt_megatron.model.named_weights import SHARDING
from bt_megatron.model.transformer_config import Computation
from bt_megatron.model.weight_names import canonical_name
from bt_megatron.parallel.groups import build_groups
from bt_megatron.parallel.layout import parse_stages
from tests.ranks import run_ranks
from tests.small_models import small_model

LAYER = "block_decoder.layers.3"


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight"),
        ("mlp.linear_fc1.layer_norm_bias", "pre_mlp_layernorm.bias"),
        ("self_attention.linear_qkv.weight", "self_attention.linear_qkv.weight"),
        ("mlp.linear_fc1.bias", "mlp.linear_fc1.bias"),
    ],
)
def test_canonical_name(key: str, name: str) -> None:
    assert canonical_name(f"{LAYER}.{key}") == f"{LAYER}.{name}"


def keys_and_names() -> tuple[set[str], set[str]]:
    build_groups(LayoutConfig(), seed=0)
    model = small_model()
    stage = build_stage(model, LayoutConfig(), parse_stages(layer_letters(model)), Computation())
    state = stage.sharded_state_dict(metadata=SHARDING)
    return {entry.key for entry in state.values()}, {name for name, _ in stage.named_parameters()}


def test_a_checkpoint_holds_every_weight_under_the_fused_names_and_nothing_else() -> None:
    ((keys, names),) = run_ranks(keys_and_names, 1)
    assert {canonical_name(key) for key in keys} == names
    assert "block_decoder.layers.0.self_attention.linear_qkv.layer_norm_weight" in keys
    assert not any("extra_state" in key for key in keys)
