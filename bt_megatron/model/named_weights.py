# SPDX-License-Identifier: Apache-2.0
"""Weights of a stage by canonical name: the parameter names of the model in one process.

A stage of any layout maps its local shards to names and positions in the whole
tensors. Initial weights, imported weights and gradients in tests go through here,
so none of them depends on the layout.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from bt_megatron.errors import ConversionError
from bt_megatron.model.weight_names import canonical_name, is_vocabulary_table

SHARDING = {"non_homogeneous_layers": True}
"""Metadata of sharded_state_dict: one key per layer, so that keys are names."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of one weight that this rank holds."""

    name: str
    """Canonical name."""
    data: Tensor
    """View of the local parameter."""
    whole_shape: tuple[int, ...]
    """Shape of the whole weight; a vocabulary is padded."""
    place: tuple[slice, ...]
    """Where `data` lies in the whole weight."""

    @property
    def is_vocabulary_table(self) -> bool:
        """Whether the first axis is the vocabulary."""
        return is_vocabulary_table(self.name)


def named_shards(stage: MegatronModule) -> Iterator[Shard]:
    """Yield every weight shard of a stage.

    Comm: none.
    """
    for entry in stage.sharded_state_dict(metadata=SHARDING).values():
        for tensor in _sharded_tensors(entry):
            place = tuple(
                slice(start, start + length)
                for start, length in zip(tensor.global_offset, tensor.local_shape, strict=True)
            )
            name = canonical_name(tensor.key)
            yield Shard(name, tensor.data, tuple(tensor.global_shape), place)


def _sharded_tensors(entry: Any) -> list[ShardedTensor]:
    if isinstance(entry, ShardedTensorFactory):  # SwiGLU: gate and up are cut separately
        built = entry.build()
        return list(built.values()) if isinstance(built, dict) else list(built)
    return [entry] if isinstance(entry, ShardedTensor) else []


def whole_weight(shard: Shard, weight: Tensor) -> Tensor:
    """Return a canonical weight with vocabulary padding rows of zeros added.

    Raises:
        ConversionError: if the shapes do not agree.
    """
    missing = shard.whole_shape[0] - weight.shape[0] if weight.dim() else 0
    if shard.is_vocabulary_table and missing > 0:
        weight = torch.cat((weight, weight.new_zeros(missing, *weight.shape[1:])))
    if tuple(weight.shape) != shard.whole_shape:
        raise ConversionError(
            f"weight {shard.name}: its shape is {tuple(weight.shape)}, the model's is "
            f"{shard.whole_shape}. Use the model section that the weights were made with."
        )
    return weight


@torch.no_grad()
def load_named_weights(stage: MegatronModule, weights: Mapping[str, Tensor]) -> None:
    """Copy this rank's shards from whole canonical weights.

    Raises:
        ConversionError: if a weight is missing or has another shape.

    Comm: none.
    """
    shards = list(named_shards(stage))
    absent = sorted({shard.name for shard in shards} - set(weights))
    if absent:
        raise ConversionError(
            f"{len(absent)} of {len(shards)} weights are missing: {', '.join(absent[:8])} ... "
            "Use weights of the same model section."
        )
    for shard in shards:
        shard.data.copy_(whole_weight(shard, weights[shard.name])[shard.place])


@torch.no_grad()
def clear_vocabulary_padding(stage: MegatronModule, *, vocab_size: int) -> None:
    """Set the rows that pad the vocabulary to zero, as they are in a new model.

    Comm: none.
    """
    for shard in named_shards(stage):
        if shard.is_vocabulary_table:
            real = max(0, vocab_size - shard.place[0].start)
            shard.data[real:] = 0
