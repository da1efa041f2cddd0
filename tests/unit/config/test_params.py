# SPDX-License-Identifier: Apache-2.0
"""Parameter counts of variants that the published models do not cover; those are in
tests/unit/test_configs.py."""

import json
from math import prod
from pathlib import Path

import pytest

from bt_megatron.config.geometry import layer_letters
from bt_megatron.config.load import load_model
from bt_megatron.config.params import count_parameters, element_parameters, layer_parameters
from bt_megatron.config.schema import (
    DecoderConfig,
    EmbedderConfig,
    ModelConfig,
    TokenDecoderConfig,
)

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests/fixtures/reference"
STACK = {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4}


def shapes_of(path):
    """Read the tensor shapes in the header of a safetensors file."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    return {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}


def token_decoder(**changes):
    return TokenDecoderConfig(**STACK, **changes)


T5 = token_decoder(
    strategy="cross_attention",
    residual="sequential",
    normalization="rmsnorm",
    activation="relu",
    bias=False,
)
ROBERTA = {"num_layers": 2, "num_attention_heads": 2, "ffn_hidden_size": 128}
CLS = EmbedderConfig(kind="roberta_cls", hidden_size=32, num_cls_tokens=3, **ROBERTA)
FOLDERS = {
    "lookup_prefix_b4_p2": (4, EmbedderConfig(hidden_size=16), token_decoder()),
    "lookup_prefix_b1_p1": (1, EmbedderConfig(hidden_size=64), token_decoder(prefix_length=1)),
    "lookup_summation_b4": (
        4,
        EmbedderConfig(hidden_size=16),
        token_decoder(strategy="summation"),
    ),
    "roberta_cls_prefix_b4_p1": (4, CLS, token_decoder(prefix_length=1)),
    "roberta_cls_cross_attention_b4": (4, CLS, T5),
}
TIED = ("token_decoder.decoder.embed_tokens.weight", "token_decoder.lm_head.weight")
UNUSED = ("block_decoder.gpt_neox.embed_in.weight",)


@pytest.mark.parametrize("folder", FOLDERS)
def test_counts_equal_the_tensors_of_the_reference(folder):
    length, embedder, token = FOLDERS[folder]
    model = ModelConfig(
        vocab_size=512,
        block_length=length,
        embedder=embedder,
        block_decoder=DecoderConfig(**STACK),
        token_decoder=token,
    )
    shapes = shapes_of(GOLDEN / folder / "state_dict.safetensors")
    tied = TIED if token is T5 else ()
    sizes = {name: prod(s) for name, s in shapes.items() if name not in (*tied, *UNUSED)}

    def total(*parts):
        return sum(size for name, size in sizes.items() if any(part in name for part in parts))

    counts = count_parameters(model)

    assert counts.total == sum(sizes.values())
    assert counts.embedder == total("embedder.")
    assert counts.block_decoder == total("block_decoder.")
    assert counts.expansion == total("expansion_layer")
    assert counts.token_embedding == total("token_decoder.gpt_neox.embed_in", "shared.weight")
    assert counts.head == total("embed_out")


def test_a_vanilla_model_equals_the_tensors_of_the_reference():
    shapes = shapes_of(GOLDEN / "vanilla_neox/state_dict.safetensors")
    model = ModelConfig(
        architecture="vanilla",
        vocab_size=512,
        decoder=DecoderConfig(num_layers=4, hidden_size=64, num_attention_heads=4),
    )

    assert count_parameters(model).total == sum(prod(shape) for shape in shapes.values())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 64 * 192 + 192 + 64 * 64 + 64 + 64 * 256 + 256 + 256 * 64 + 64 + 4 * 64),
        ({"bias": False}, 64 * 192 + 64 * 64 + 2 * 64 * 256 + 4 * 64),
        ({"bias": False, "normalization": "rmsnorm"}, 64 * 256 + 2 * 64 * 256 + 2 * 64),
        ({"bias": False, "num_query_groups": 2}, 64 * 128 + 64 * 64 + 2 * 64 * 256 + 4 * 64),
        (
            {"activation": "swiglu", "ffn_hidden_size": 160},
            64 * 192 + 192 + 64 * 64 + 64 + 64 * 320 + 320 + 160 * 64 + 64 + 4 * 64,
        ),
    ],
    ids=["neox", "no-bias", "rmsnorm", "query-groups", "swiglu"],
)
def test_layers_of_other_styles(changes, expected):
    assert layer_parameters(DecoderConfig(**STACK, **changes)) == expected


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs/model").glob("*.yaml")), ids=lambda p: p.stem
)
def test_elements_add_up_to_the_model(path):
    model = load_model(path)
    elements = element_parameters(model)

    assert len(elements) == len(layer_letters(model))
    assert sum(elements) == count_parameters(model).total
