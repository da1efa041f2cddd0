# SPDX-License-Identifier: Apache-2.0
"""This rank's model chunk as Megatron trains it, and its optimizer."""

from collections.abc import Sequence

import torch
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer.optimizer_config import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.transformer.module import Float16Module

from bt_megatron.config.schema import RunConfig
from bt_megatron.model.build import build_stage
from bt_megatron.model.layer_library import LayerLibrary
from bt_megatron.model.transformer_config import Precision
from bt_megatron.parallel.layout import StageSlice

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def build_chunk(
    config: RunConfig, stages: Sequence[StageSlice], *, layers: LayerLibrary = "torch"
) -> DistributedDataParallel:
    """Return this rank's stage, wrapped for mixed precision and data parallelism.

    Gradients are accumulated and reduced in float32. Weights are not yet set.

    Args:
        config: the run.
        stages: what each pipeline stage holds.
        layers: library of the decoders' layers.

    Comm: none.
    """
    precision = Precision(dtype=DTYPES[config.train.precision], layers=layers)
    stage = build_stage(config.model, config.layout, stages, precision)
    module = Float16Module(stage.config, stage) if precision.is_bf16 else stage
    chunk = DistributedDataParallel(
        config=stage.config,
        ddp_config=DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            use_distributed_optimizer=config.layout.distributed_optimizer,
            overlap_grad_reduce=config.layout.overlap_grad_reduce,
        ),
        module=module,
    )
    stage.config.finalize_model_grads_func = finalize_model_grads
    if config.layout.overlap_grad_reduce:
        stage.config.no_sync_func = chunk.no_sync
    return chunk


def build_optimizer(config: RunConfig, chunk: DistributedDataParallel) -> MegatronOptimizer:
    """Return AdamW over the chunk's parameters, in float32.

    The weights must be set before: under bf16 the optimizer copies them as float32.

    Comm: none.
    """
    optimizer = config.optimizer
    return get_megatron_optimizer(
        MegatronOptimizerConfig(
            optimizer="adam",
            lr=optimizer.lr,
            weight_decay=optimizer.weight_decay,
            adam_beta1=optimizer.adam_beta1,
            adam_beta2=optimizer.adam_beta2,
            adam_eps=optimizer.adam_eps,
            clip_grad=optimizer.clip_grad,
            bf16=config.train.precision == "bf16",
            params_dtype=DTYPES[config.train.precision],
            use_distributed_optimizer=config.layout.distributed_optimizer,
        ),
        [chunk],
        # None is Megatron's own rule: no decay of biases and one-dimensional weights.
        config_overrides={} if optimizer.decay_biases_and_norms else None,
    )
