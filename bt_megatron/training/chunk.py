# SPDX-License-Identifier: Apache-2.0
"""This rank's model chunks as Megatron trains them, and their optimizer."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer.optimizer_config import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.transformer.module import Float16Module
from torch import Tensor

from bt_megatron.config.schema import RunConfig
from bt_megatron.model.build import build_stage
from bt_megatron.model.layer_library import LayerLibrary
from bt_megatron.model.transformer_config import Computation
from bt_megatron.parallel.layout import StageSlice

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def build_chunks(
    config: RunConfig, stages: Sequence[StageSlice], *, layers: LayerLibrary = "torch"
) -> list[DistributedDataParallel]:
    """Return this process's stages, wrapped for mixed precision and data parallelism.

    One, or `layout.vpp` of them. Gradients are accumulated and reduced in float32. Weights
    are not yet set.

    Args:
        config: the run.
        stages: what each pipeline stage holds.
        layers: library of the decoders' layers.

    Comm: none.
    """
    numbers: Sequence[int | None] = range(config.layout.vpp) if config.layout.vpp > 1 else (None,)
    chunks = [_build_chunk(config, stages, layers, vp_stage=number) for number in numbers]
    schedule = chunks[0].config  # the one that Megatron's schedules read
    schedule.finalize_model_grads_func = _reduce_gradients
    if config.layout.overlap_grad_reduce:
        no_sync = [chunk.no_sync for chunk in chunks]
        schedule.no_sync_func = no_sync if len(chunks) > 1 else no_sync[0]
    return chunks


def _build_chunk(
    config: RunConfig, stages: Sequence[StageSlice], layers: LayerLibrary, *, vp_stage: int | None
) -> DistributedDataParallel:
    layout = config.layout
    how = Computation(
        dtype=DTYPES[config.train.precision],
        layers=layers,
        fp8=config.kernels.fp8,
        token_attention=config.kernels.token_attention,
        deterministic=config.kernels.deterministic,
        head_chunk_rows=config.kernels.head_chunk_tokens,
        memory=config.memory,
    )
    stage = build_stage(config.model, layout, stages, how, vp_stage=vp_stage)
    module = Float16Module(stage.config, stage) if how.is_bf16 else stage
    return DistributedDataParallel(
        config=stage.config,
        ddp_config=DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            use_distributed_optimizer=layout.distributed_optimizer,
            overlap_grad_reduce=layout.overlap_grad_reduce,
            overlap_param_gather=layout.overlap_param_gather,
        ),
        module=module,
    )


def _reduce_gradients(
    chunks: list[DistributedDataParallel], _num_tokens: Tensor | None, **settings: Any
) -> None:
    """Finish the gradients of a step as sums over all targets.

    Megatron would divide them by the number of targets, in a pass of its own over all gradients;
    the optimizer does it on the way (`UpdateGate`).

    Comm: Megatron's: reductions over the dp and cp group, of norms over tp, of embeddings over pp.
    """
    finalize_model_grads(chunks, None, **settings)


@contextlib.contextmanager
def gathered_weights(chunks: Sequence[DistributedDataParallel]) -> Iterator[None]:
    """Have all weights in place inside the context.

    With `layout.overlap_param_gather` they arrive only with the training step that needs
    them; evaluations and checkpoints come in between.

    Comm: all-gathers over the dp and cp group if that overlap is on; must be called by all.
    """
    waiting = [chunk for chunk in chunks if chunk.use_forward_hook]
    for chunk in waiting:
        chunk.disable_forward_pre_hook()
    try:
        yield
    finally:
        for chunk in waiting:
            chunk.enable_forward_pre_hook()


def build_optimizer(
    config: RunConfig, chunks: Sequence[DistributedDataParallel]
) -> MegatronOptimizer:
    """Return AdamW over the weights of all chunks, in float32.

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
            overlap_param_gather=config.layout.overlap_param_gather,
        ),
        list(chunks),
        # None is Megatron's own rule: no decay of biases and one-dimensional weights.
        config_overrides={} if optimizer.decay_biases_and_norms else None,
    )
