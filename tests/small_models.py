# SPDX-License-Identifier: Apache-2.0
"""Model sections of small Block Transformers, one for each kind of layer and part."""

from dataclasses import replace
from typing import Any

from bt_megatron.checkpoint.hf_config import block_fields
from bt_megatron.config.schema import (
    DecoderConfig,
    EmbedderConfig,
    ModelConfig,
    TokenDecoderConfig,
)

VOCAB = 64
ROBERTA = {
    "hidden_size": 8,
    "num_layers": 2,
    "num_attention_heads": 2,
    "ffn_hidden_size": 32,
    "max_positions": 16,
}
T5 = {
    "strategy": "cross_attention",
    "residual": "sequential",
    "normalization": "rmsnorm",
    "activation": "relu",
    "bias": False,
    "norm_epsilon": 1e-6,
}
LLAMA = {
    "residual": "sequential",
    "normalization": "rmsnorm",
    "activation": "swiglu",
    "bias": False,
    "num_query_groups": 2,
    "ffn_hidden_size": 48,
    "rotary_fraction": 1.0,
    "rotary_base": 5e5,
}
KINDS: dict[str, dict[str, dict[str, Any]]] = {
    "prefix": {},
    "long prefix": {"token_decoder": {"prefix_length": 5}},
    "summation": {"token_decoder": {"strategy": "summation"}},
    "cross attention": {"token_decoder": T5},
    "projection": {"embedder": {"hidden_size": 12, "projection": True}},
    "roberta": {"embedder": {"kind": "roberta", **ROBERTA}},
    "roberta_cls": {"embedder": {"kind": "roberta_cls", "num_cls_tokens": 3, **ROBERTA}},
    "llama layers": {"block_decoder": LLAMA, "token_decoder": LLAMA},
    "no rotation": {
        "block_decoder": {"rotary_fraction": 0.0},
        "token_decoder": {"rotary_fraction": 0.0, "activation": "relu"},
    },
    "two widths": {"token_decoder": {"hidden_size": 48, "num_attention_heads": 4}},
}
"""Changes of the sections, by kind."""


def small_model(*, block_length: int = 4, **changes: dict[str, Any]) -> ModelConfig:
    """Return a model section; `changes` are by name of the section."""
    stack = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4}
    sections = {
        "embedder": EmbedderConfig(hidden_size=32 // block_length),
        "block_decoder": DecoderConfig(**stack),
        "token_decoder": TokenDecoderConfig(**stack),
    }
    sections = {name: replace(part, **changes.get(name, {})) for name, part in sections.items()}
    return ModelConfig(vocab_size=VOCAB, block_length=block_length, **sections)


def small_config(*, block_length: int = 4, **changes: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a small model's config.json."""
    return block_fields(small_model(block_length=block_length, **changes))
