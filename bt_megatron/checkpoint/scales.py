# SPDX-License-Identifier: Apache-2.0
"""The scales of delayed FP8 scaling as part of a checkpoint.

Maxima are reduced over the processes that share a layer, so its scales are the same on all of
them: they are saved once, by the layer's name, and load in any layout.
"""

from collections.abc import Sequence
from typing import Any

from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.transformer.module import MegatronModule

from bt_megatron.model.fp8 import has_history, put_scales, read_scales, scaled_modules


def sharded_scales(stages: Sequence[MegatronModule]) -> dict[str, ShardedObject]:
    """Return the scales of this rank's stages by module; empty without a history.

    Comm: none.
    """
    replica = (
        parallel_state.get_tensor_model_parallel_rank(),
        parallel_state.get_data_parallel_rank(with_context_parallel=True),
    )
    return {
        name: ShardedObject(f"fp8_scales.{name}", read_scales(module), (1,), (0,), (0, *replica))
        for stage in stages
        if has_history(stage.config)
        for name, module in scaled_modules(stage)
    }


def load_scales(stages: Sequence[MegatronModule], loaded: dict[str, Any]) -> None:
    """Set the scales of this rank's stages from a loaded state dict.

    Comm: none.
    """
    for stage in stages:
        for name, module in scaled_modules(stage):
            if loaded[name]:
                put_scales(module, loaded[name], stage.config)
