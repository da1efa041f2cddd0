# SPDX-License-Identifier: Apache-2.0
"""Reading the weights of a training checkpoint in one process, whatever its layout was.

Megatron's torch_dist format is torch's distributed checkpoint format: torch alone
reads it, without process groups and without Megatron.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader, load
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from bt_megatron.checkpoint.manifest import find_damage, read_manifest
from bt_megatron.config.banner import data_sources
from bt_megatron.config.load import from_mapping
from bt_megatron.config.schema import ModelConfig, RunConfig
from bt_megatron.errors import CheckpointError
from bt_megatron.model.weight_names import canonical_name, is_vocabulary_table

NOT_WEIGHTS = ("optimizer.", "random")


def read_checkpoint_weights(
    folder: Path,
) -> tuple[dict[str, Tensor], ModelConfig, dict[str, Any]]:
    """Return the canonical weights of a training checkpoint, on CPU, without vocabulary padding.

    Args:
        folder: a checkpoint, .../checkpoints/step_XXXXXXXX.

    Returns:
        Weights in the precision they were trained in, the model, and what is known of the
        source: run name, step, tokens, versions, data, seq_length, random_left_padding.

    Raises:
        CheckpointError: it is not complete, or damaged.
    """
    manifest = read_manifest(folder)
    damage = find_damage(folder, manifest, manifest.files)
    if damage:
        raise CheckpointError("; ".join(damage) + ". Use another checkpoint of the run.")
    config = from_mapping(RunConfig, manifest.config, f"{folder}/manifest.json config")
    weights = {
        canonical_name(key): _cut_vocabulary(canonical_name(key), tensor, config.model)
        for key, tensor in _read_tensors(folder).items()
    }
    info = {
        "run": config.name,
        "step": manifest.step,
        "tokens": manifest.tokens,
        "versions": manifest.versions,
        "data": data_sources(config.data),
        "seq_length": config.data.seq_length,
        "random_left_padding": config.data.random_left_padding,
    }
    return weights, config.model, info


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    reader = FileSystemReader(folder)
    entries = reader.read_metadata().state_dict_metadata
    wanted = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype)
        for key, entry in entries.items()
        if isinstance(entry, TensorStorageMetadata) and not key.startswith(NOT_WEIGHTS)
    }
    with warnings.catch_warnings(action="ignore"):  # that no process group exists: so it is meant
        load(wanted, storage_reader=reader, no_dist=True)
    return wanted


def _cut_vocabulary(name: str, tensor: Tensor, model: ModelConfig) -> Tensor:
    return tensor[: model.vocab_size] if is_vocabulary_table(name) else tensor
