# SPDX-License-Identifier: Apache-2.0
"""config.json to model sections and back."""

import json
from dataclasses import replace

import pytest

from bt_megatron.checkpoint.hf_config import (
    block_fields,
    gpt_neox_fields,
    model_of,
    read_config,
)
from bt_megatron.config.schema import DecoderConfig, ModelConfig
from bt_megatron.errors import ConversionError
from tests.golden import BLOCK_MODELS, load_golden

VANILLA = ModelConfig(
    architecture="vanilla",
    vocab_size=100,
    decoder=DecoderConfig(num_layers=2, hidden_size=64, num_attention_heads=4),
)
PYTHIA = {
    "model_type": "gpt_neox",
    "vocab_size": 50304,
    "hidden_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
    "hidden_act": "gelu",
    "rotary_pct": 0.25,
    "rotary_emb_base": 10000,
    "layer_norm_eps": 1e-05,
    "use_parallel_residual": True,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
}


@pytest.mark.parametrize("name", BLOCK_MODELS)
def test_block_models(name):
    model = load_golden(name).model
    config = json.loads(json.dumps({"model_type": "block_transformer", **block_fields(model)}))
    assert model_of({**config, "transformers_version": "5"}, "config.json") == model


@pytest.mark.parametrize(
    "changes",
    [{}, {"residual": "sequential"}, {"ffn_hidden_size": 96, "rotary_fraction": 0.5}],
    ids=["default", "sequential", "sizes"],
)
def test_vanilla_models(changes):
    model = replace(VANILLA, decoder=replace(VANILLA.decoder, **changes))
    config = {"model_type": "gpt_neox", **gpt_neox_fields(model)}
    assert model_of(config, "config.json") == model


def test_config_as_transformers_writes_it(tmp_path):
    from transformers import GPTNeoXConfig

    model = replace(VANILLA, decoder=replace(VANILLA.decoder, rotary_base=5e5))
    GPTNeoXConfig(**gpt_neox_fields(model)).save_pretrained(tmp_path)
    assert model_of(read_config(tmp_path / "config.json"), "config.json") == model


def test_pythia():
    model = model_of(PYTHIA, "config.json")
    assert model.decoder == DecoderConfig(num_layers=6, hidden_size=512, num_attention_heads=8)
    assert (model.architecture, model.vocab_size) == ("vanilla", 50304)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu_fast"}, "hidden_act is 'gelu_fast', ours is 'gelu'"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rotary positions are scaled"),
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"hidden_size": None}, "no hidden_size"),
    ],
    ids=["activation", "tied", "rope", "type", "size"],
)
def test_models_that_are_not_ours(changes, message):
    with pytest.raises(ConversionError, match=message):
        model_of({**PYTHIA, **changes}, "config.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalization": "rmsnorm"}, "normalization is 'rmsnorm', GPT-NeoX has 'layernorm'"),
        ({"activation": "swiglu"}, "activation is 'swiglu'"),
        ({"bias": False}, "bias is False"),
        ({"num_query_groups": 2}, "num_query_groups is 2"),
    ],
    ids=["norm", "activation", "bias", "groups"],
)
def test_vanilla_models_without_hugging_face_form(changes, message):
    model = replace(VANILLA, decoder=replace(VANILLA.decoder, **changes))
    with pytest.raises(ConversionError, match=message):
        gpt_neox_fields(model)


def test_damaged_config(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"model_type": ')
    with pytest.raises(ConversionError, match="cannot be read"):
        read_config(path)
    path.write_text("[1]")
    with pytest.raises(ConversionError, match="not an object"):
        read_config(path)
