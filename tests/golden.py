# SPDX-License-Identifier: Apache-2.0
"""The fixtures in tests/fixtures/reference: outputs of the reference implementation."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

REFERENCE = Path(__file__).parent / "fixtures" / "reference"
BLOCK_MODELS = (
    "lookup_prefix_b4_p2",
    "lookup_prefix_b1_p1",
    "lookup_summation_b4",
    "roberta_cls_prefix_b4_p1",
    "roberta_cls_cross_attention_b4",
)
UNUSED = "block_decoder.gpt_neox.embed_in.weight"


@dataclass(frozen=True)
class Golden:
    """One model of the reference."""

    config: dict[str, Any]
    state: dict[str, Tensor]
    """Official names, as saved."""
    tensors: dict[str, Tensor]
    model: ModelConfig

    @property
    def weights(self) -> dict[str, Tensor]:
        """Return the weights by canonical name."""
        return from_official(self.state, self.model)

    def batch(self, case: str) -> MicroBatch:
        """Return a case of a block model, [B, N, k], as the trainer reads it."""
        ids = self.tensors[f"{case}.input_ids"]
        mask = self.tensors[f"{case}.attention_mask"].bool()
        length = ids.shape[-1]
        ids, mask = ids.flatten(1), mask.flatten(1)
        return MicroBatch(ids, mask, _ahead(ids, length), _ahead(mask, length))

    def case(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of one case, without its name."""
        prefix = f"{name}."
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}


def load_golden(name: str) -> Golden:
    """Load a model folder."""
    folder = REFERENCE / name
    config = json.loads((folder / "config.json").read_text())
    state = load_file(folder / "state_dict.safetensors")
    tensors = load_file(folder / "tensors.safetensors")
    model = vanilla_model(config) if name == "vanilla_neox" else block_model(config)
    return Golden(config, state, tensors, model)


def load_facts(path: str) -> dict[str, Any]:
    """Load a JSON file of the fixtures."""
    return json.loads((REFERENCE / path).read_text())


def _ahead(rows: Tensor, shift: int) -> Tensor:
    return torch.cat((rows[:, shift:], torch.zeros_like(rows[:, :shift])), dim=1)


def block_model(config: dict[str, Any]) -> ModelConfig:
    """Return the model section of a block model's config.json."""
    return ModelConfig(
        vocab_size=config["vocab_size"],
        block_length=config["block_length"],
        embedder=_embedder(config["embedder"]),
        block_decoder=DecoderConfig(**_sizes(config["block_decoder"])),
        token_decoder=_token_decoder(config["token_decoder"]),
    )


def vanilla_model(config: dict[str, Any]) -> ModelConfig:
    """Return the model section of the vanilla model's config.json."""
    decoder = DecoderConfig(**_sizes(config))
    return ModelConfig(architecture="vanilla", vocab_size=config["vocab_size"], decoder=decoder)


def _sizes(section: dict[str, Any]) -> dict[str, Any]:
    return {
        "num_layers": section["num_hidden_layers"],
        "hidden_size": section["hidden_size"],
        "num_attention_heads": section["num_attention_heads"],
    }


def _embedder(section: dict[str, Any]) -> EmbedderConfig:
    width = section["hidden_size"]
    if section["cls"] == "lookup":
        projected = section["projection_method"] == "projection_layer"
        return EmbedderConfig(hidden_size=width, projection=projected)
    sizes = _sizes(section)
    return EmbedderConfig(
        kind=section["cls"],
        **sizes,
        ffn_hidden_size=4 * width,
        num_cls_tokens=section["n_cls_tokens"],
    )


def _token_decoder(section: dict[str, Any]) -> TokenDecoderConfig:
    settings: dict[str, Any] = {"strategy": section["decoding_strategy"]}
    if settings["strategy"] == "prefix":
        settings["prefix_length"] = section["expansion_ratio"]
    if section["cls"] == "t5":
        settings |= {
            "residual": "sequential",
            "normalization": "rmsnorm",
            "activation": "relu",
            "bias": False,
            "norm_epsilon": section["layer_norm_epsilon"],
        }
    return TokenDecoderConfig(**_sizes(section), **settings)
