# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint holds, as Megatron's sharded state dict.

Weights and optimizer state are stored as whole tensors by name, so they load
in any layout, and so do the scales of delayed FP8 scaling (scales.py). Random
states belong to one rank of one layout and are loaded only there.
"""

from collections.abc import Sequence
from typing import Any

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import (
    ShardedObject,
    ShardedTensor,
    ShardedTensorFactory,
)
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import nn

from bt_megatron.checkpoint.optimizer_shards import own_param_state
from bt_megatron.checkpoint.scales import load_scales, sharded_scales
from bt_megatron.model.named_weights import SHARDING, clear_vocabulary_padding
from bt_megatron.model.weight_names import is_module_state

OPTIMIZER_SHARDING = "fully_reshardable"
"""The form of optimizer state that every layout can load."""


def unwrap(chunk: nn.Module) -> nn.Module:
    """Return the stage inside of DDP and mixed-precision wrappers."""
    while hasattr(chunk, "module"):
        chunk = chunk.module
    return chunk


def sharded_state(
    chunks: Sequence[nn.Module],
    optimizer: MegatronOptimizer,
    *,
    is_loading: bool,
    with_random: bool = True,
    with_scales: bool = True,
) -> dict[str, Any]:
    """Return the sharded state dict of this rank.

    Args:
        chunks: the wrapped stages of this rank.
        optimizer: their optimizer.
        is_loading: whether it is to be filled from a checkpoint.
        with_random: whether random states are part of it.
        with_scales: whether the scales of delayed FP8 scaling are, where there are some.

    Returns:
        When saving, the tensors are those of the model and the optimizer, not copies.

    Comm: none.
    """
    metadata = {
        **SHARDING,
        "distrib_optim_sharding_type": OPTIMIZER_SHARDING,
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
        "chained_optim_avoid_prefix": True,
    }
    state: dict[str, Any] = {
        _model_key(number): unwrap(chunk).sharded_state_dict(metadata=metadata)
        for number, chunk in enumerate(chunks)
    }
    sharded = None if is_loading else _sharded_optimizer(optimizer)
    if sharded is None:
        state["optimizer"] = optimizer.sharded_state_dict(
            dict(state), is_loading=is_loading, metadata=metadata
        )
    else:
        weights = [
            entry
            for entry in nested_values(state)
            if isinstance(entry, ShardedTensor | ShardedTensorFactory)
        ]
        state["optimizer"] = {
            **sharded.state_dict(),
            "param_state": own_param_state(sharded, weights),
            "param_state_sharding_type": OPTIMIZER_SHARDING,
        }
    if with_scales and (scales := sharded_scales([unwrap(chunk) for chunk in chunks])):
        state["fp8_scales"] = scales
    if with_random:
        state["random"] = _sharded_random()
    return state


def load_state(
    chunks: Sequence[nn.Module], optimizer: MegatronOptimizer, state: dict[str, Any]
) -> None:
    """Fill weights, optimizer, FP8 scales and random states from a loaded state dict.

    Comm: none.
    """
    for number, chunk in enumerate(chunks):
        stage = unwrap(chunk)
        loaded = stage.load_state_dict(state[_model_key(number)], strict=False)
        amiss = [key for keys in loaded for key in keys if not is_module_state(key)]
        assert not amiss, f"state of other modules: {amiss}"  # what was read was asked for by name
        clear_vocabulary_padding(stage, vocab_size=stage.model.vocab_size)
    with torch.no_grad():
        optimizer.load_state_dict(state["optimizer"])
    if "fp8_scales" in state:
        load_scales([unwrap(chunk) for chunk in chunks], state["fp8_scales"])
    if "random" in state:
        set_random_state(state["random"])


def random_state() -> dict[str, Any]:
    """Return the states of this rank's random generators.

    Comm: none.
    """
    state = {
        "cpu": torch.get_rng_state(),
        "tracker": tensor_parallel.get_cuda_rng_tracker().get_states(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Put this rank's random generators into a state of before.

    Comm: none.
    """
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    tensor_parallel.get_cuda_rng_tracker().set_states(state["tracker"])


def _sharded_optimizer(optimizer: MegatronOptimizer) -> DistributedOptimizer | None:
    """Return the optimizer that shards its state over ranks, if this is one."""
    (part,) = optimizer.chained_optimizers  # one, because no weights are experts
    return part if isinstance(part, DistributedOptimizer) else None


def _model_key(number: int) -> str:
    """Name a stage in this rank's state dict; in the files, weights go by their own names."""
    return f"model{number}"


def _sharded_random() -> ShardedObject:
    sizes = (
        parallel_state.get_pipeline_model_parallel_world_size(),
        parallel_state.get_tensor_model_parallel_world_size(),
        parallel_state.get_data_parallel_world_size(with_context_parallel=True),
    )
    rank = (
        parallel_state.get_pipeline_model_parallel_rank(),
        parallel_state.get_tensor_model_parallel_rank(),
        parallel_state.get_data_parallel_rank(with_context_parallel=True),
    )
    return ShardedObject("random", random_state(), sizes, rank)
