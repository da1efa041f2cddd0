# SPDX-License-Identifier: Apache-2.0
"""The reference's models in small: their configurations, weights and batches."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from bt_megatron.checkpoint.names import from_official
from bt_megatron.config.schema import (
    DecoderConfig,
    EmbedderConfig,
    ModelConfig,
    TokenDecoderConfig,
)
from bt_megatron.data.batches import MicroBatch

ROOT = Path(__file__).parent / "fixtures" / "reference"

NEOX = {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4}
LOOKUP = EmbedderConfig(hidden_size=16)
ROBERTA_CLS = EmbedderConfig(
    kind="roberta_cls",
    hidden_size=32,
    num_layers=2,
    num_attention_heads=2,
    ffn_hidden_size=128,
    num_cls_tokens=3,
)
T5 = TokenDecoderConfig(
    **NEOX,
    strategy="cross_attention",
    residual="sequential",
    normalization="rmsnorm",
    norm_epsilon=1e-6,
    activation="relu",
    bias=False,
)


def _block(
    embedder: EmbedderConfig, token_decoder: TokenDecoderConfig, *, block_length: int = 4
) -> ModelConfig:
    return ModelConfig(
        vocab_size=512,
        block_length=block_length,
        embedder=embedder,
        block_decoder=DecoderConfig(**NEOX),
        token_decoder=token_decoder,
    )


def _prefix(length: int) -> TokenDecoderConfig:
    return TokenDecoderConfig(**NEOX, prefix_length=length)


MODELS = {
    "lookup_prefix_b4_p2": _block(LOOKUP, _prefix(2)),
    "lookup_prefix_b1_p1": _block(EmbedderConfig(hidden_size=64), _prefix(1), block_length=1),
    "lookup_summation_b4": _block(LOOKUP, TokenDecoderConfig(**NEOX, strategy="summation")),
    "roberta_cls_prefix_b4_p1": _block(ROBERTA_CLS, _prefix(1)),
    "roberta_cls_cross_attention_b4": _block(ROBERTA_CLS, T5),
    "vanilla_neox": ModelConfig(
        architecture="vanilla",
        vocab_size=512,
        decoder=DecoderConfig(num_layers=4, hidden_size=64, num_attention_heads=4),
    ),
}


def fixture_weights(name: str) -> dict[str, Tensor]:
    """Return a fixture's weights by canonical name."""
    return from_official(load_file(ROOT / name / "state_dict.safetensors"), MODELS[name])


def fixture_tensors(name: str) -> dict[str, Tensor]:
    """Return a fixture's inputs and outputs."""
    return load_file(ROOT / name / "tensors.safetensors")


def fixture_facts(name: str, file: str = "config.json") -> dict:
    """Return a fixture's sizes and losses."""
    return json.loads((ROOT / name / file).read_text())


def block_batch(tensors: dict[str, Tensor], case: str) -> MicroBatch:
    """Return a case of a block fixture, [B, N, k], as the trainer reads it."""
    ids, mask = tensors[f"{case}.input_ids"], tensors[f"{case}.attention_mask"].bool()
    length = ids.shape[-1]
    ids, mask = ids.flatten(1), mask.flatten(1)
    return MicroBatch(ids, mask, _ahead(ids, length), _ahead(mask, length))


def _ahead(rows: Tensor, shift: int) -> Tensor:
    return torch.cat((rows[:, shift:], torch.zeros_like(rows[:, :shift])), dim=1)
