# SPDX-License-Identifier: Apache-2.0
"""Writes a model as a Hugging Face folder that needs nothing of this project.

Block models bring their modeling file; vanilla ones are plain GPTNeoXForCausalLM.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GPTNeoXConfig, PretrainedConfig

from bt_megatron.checkpoint.hf_config import block_fields, gpt_neox_fields
from bt_megatron.checkpoint.names import to_official
from bt_megatron.checkpoint.safetensors_files import DEFAULT_SHARD_GB, write_tensors
from bt_megatron.config.schema import ModelConfig
from bt_megatron.inference import modeling_block_transformer as modeling

MODELING_FILE = Path(modeling.__file__)
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def write_model(
    folder: Path,
    weights: Mapping[str, Tensor],
    model: ModelConfig,
    *,
    dtype: str,
    end_id: int = 0,
    max_length: int | None = None,
    random_left_padding: bool = False,
    max_shard_gb: float = DEFAULT_SHARD_GB,
) -> None:
    """Write tensors, config.json, generation_config.json and the modeling file.

    Args:
        folder: an existing, empty folder.
        weights: by canonical name.
        model: the model they belong to.
        dtype: bf16 or fp32.
        end_id: token that ends documents; training pads with it too.
        max_length: tokens per sequence in training, if known.
        random_left_padding: whether training put pads in front of documents, so that the model
            may do so too and predict every token from the second on.
        max_shard_gb: largest file, in units of 10**9 bytes.

    Raises:
        ConversionError: the weights do not fit the model, or GPT-NeoX cannot express it.
    """
    config = _config(model, dtype=dtype, end_id=end_id, max_length=max_length)
    if model.is_block and random_left_padding:
        config.left_padding = model.block_length - 1
    official = to_official(weights, model)
    # Tied names must stay one tensor, so that it is stored once.
    cast = {id(tensor): tensor.to(DTYPES[dtype]) for tensor in official.values()}
    tensors = {name: cast[id(tensor)] for name, tensor in official.items()}
    write_tensors(folder, tensors, max_shard_gb=max_shard_gb)
    config.save_pretrained(folder)
    ids = {"bos_token_id": end_id, "eos_token_id": end_id, "pad_token_id": end_id}
    GenerationConfig(**ids).save_pretrained(folder)
    if model.is_block:
        shutil.copyfile(MODELING_FILE, folder / MODELING_FILE.name)


def _config(
    model: ModelConfig, *, dtype: str, end_id: int, max_length: int | None
) -> PretrainedConfig:
    ids = {"bos_token_id": end_id, "eos_token_id": end_id, "pad_token_id": end_id}
    length = {} if max_length is None else {"max_position_embeddings": max_length}
    common: dict[str, Any] = {**ids, **length, "dtype": str(DTYPES[dtype]).removeprefix("torch.")}
    if not model.is_block:
        architectures = ["GPTNeoXForCausalLM"]
        return GPTNeoXConfig(**gpt_neox_fields(model), **common, architectures=architectures)
    config_class, model_class = (
        modeling.BlockTransformerConfig.__name__,
        modeling.BlockTransformerForCausalLM.__name__,
    )
    auto_map = {
        "AutoConfig": f"{MODELING_FILE.stem}.{config_class}",
        "AutoModelForCausalLM": f"{MODELING_FILE.stem}.{model_class}",
    }
    fields = block_fields(model)
    return modeling.BlockTransformerConfig(
        **fields, **common, auto_map=auto_map, architectures=[model_class]
    )
