# SPDX-License-Identifier: Apache-2.0
"""config.json of a Hugging Face folder to and from our model section."""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from bt_megatron.config.load import from_mapping, to_mapping
from bt_megatron.config.schema import DecoderConfig, ModelConfig
from bt_megatron.errors import ConversionError

GPT_NEOX, BLOCK_TRANSFORMER = "gpt_neox", "block_transformer"
GPT_NEOX_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
)
SECTIONS = ("embedder", "block_decoder", "token_decoder")


def read_config(path: Path) -> dict[str, Any]:
    """Read a config.json.

    Raises:
        ConversionError: it is not an object in JSON.
    """
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConversionError(f"{path}: cannot be read ({error}). Copy it again.") from error
    if not isinstance(config, dict):
        raise ConversionError(f"{path}: not an object. Copy it again from its source.")
    return config


def model_of(config: Mapping[str, Any], where: str) -> ModelConfig:
    """Return the model section of a config.json.

    Args:
        config: of a GPT-NeoX model (Pythia) or of one of our exports.
        where: its path, for messages.

    Raises:
        ConversionError: another model type, or a setting that our model does not have.
        ConfigError: sections that are not valid.
    """
    kind = config.get("model_type")
    if kind == BLOCK_TRANSFORMER:
        known = {item.name for item in fields(ModelConfig)}
        return from_mapping(ModelConfig, {k: v for k, v in config.items() if k in known}, where)
    if kind == GPT_NEOX:
        return _gpt_neox_model(config, where)
    raise ConversionError(
        f"{where}: model_type is {kind!r}. Only {GPT_NEOX!r} (Pythia) and {BLOCK_TRANSFORMER!r} "
        "(our exports) can be imported."
    )


def _gpt_neox_model(config: Mapping[str, Any], where: str) -> ModelConfig:
    rope = config.get("rope_parameters") or {}
    problems = [
        f"{key} is {config[key]!r}, ours is {ours!r}"
        for key, ours in (
            ("hidden_act", "gelu"),
            ("attention_bias", True),
            ("tie_word_embeddings", False),
        )
        if config.get(key, ours) != ours
    ]
    if config.get("rope_scaling") or rope.get("rope_type", "default") != "default":
        problems.append("rotary positions are scaled, ours are not")
    if problems:
        raise ConversionError(
            f"{where}: {'; '.join(problems)}. Weights of such a model mean something else here; "
            "it cannot be imported."
        )
    absent = [key for key in GPT_NEOX_SIZES if not isinstance(config.get(key), int)]
    if absent:
        raise ConversionError(
            f"{where}: no {', '.join(absent)}. Copy the model's own config.json next to it."
        )
    vocab, width, layers, heads, inner = (config[key] for key in GPT_NEOX_SIZES)
    decoder = DecoderConfig(
        num_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        ffn_hidden_size=None if inner == 4 * width else inner,
        residual="parallel" if config.get("use_parallel_residual", True) else "sequential",
        rotary_fraction=rope.get("partial_rotary_factor", config.get("rotary_pct", 0.25)),
        rotary_base=float(rope.get("rope_theta", config.get("rotary_emb_base", 10_000))),
        norm_epsilon=config.get("layer_norm_eps", 1e-5),
    )
    return ModelConfig(
        architecture="vanilla",
        vocab_size=vocab,
        decoder=decoder,
        init_std=config.get("initializer_range", 0.02),
    )


def block_fields(model: ModelConfig) -> dict[str, Any]:
    """Return the fields that our model has in an exported config.json."""
    mapping = to_mapping(model)
    return {key: mapping[key] for key in ("vocab_size", "block_length", "init_std", *SECTIONS)}


def gpt_neox_fields(model: ModelConfig) -> dict[str, Any]:
    """Return the fields of transformers' GPTNeoXConfig for a vanilla model.

    Raises:
        ConversionError: naming every setting that GPT-NeoX does not have.
    """
    decoder = model.decoder
    assert decoder is not None, "a vanilla model has a decoder"
    problems = [
        f"model.decoder.{key} is {getattr(decoder, key)!r}, GPT-NeoX has {theirs!r}"
        for key, theirs in (("normalization", "layernorm"), ("activation", "gelu"), ("bias", True))
        if getattr(decoder, key) != theirs
    ]
    if decoder.query_groups != decoder.num_attention_heads:
        problems.append(
            f"model.decoder.num_query_groups is {decoder.query_groups}, GPT-NeoX has as many as "
            f"heads ({decoder.num_attention_heads})"
        )
    if problems:
        raise ConversionError(
            f"{'; '.join(problems)}. Such a model has no Hugging Face form; train a vanilla "
            "model with GPT-NeoX's settings to export it."
        )
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": decoder.hidden_size,
        "num_hidden_layers": decoder.num_layers,
        "num_attention_heads": decoder.num_attention_heads,
        "intermediate_size": decoder.ffn_size,
        "hidden_act": "gelu",
        "use_parallel_residual": decoder.residual == "parallel",
        "rotary_pct": decoder.rotary_fraction,
        "rotary_emb_base": decoder.rotary_base,
        "layer_norm_eps": decoder.norm_epsilon,
        "initializer_range": model.init_std,
        "attention_bias": True,
        "tie_word_embeddings": False,
    }
