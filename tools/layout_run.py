# SPDX-License-Identifier: Apache-2.0
"""A few training steps in one layout: losses, gradient norms and every gradient by name.

Batches are drawn from the position alone, so that every layout reads the same ones; the
sequences have pads, of different number in each.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from torch import Tensor

from bt_megatron.checkpoint.state import unwrap
from bt_megatron.config.schema import RunConfig
from bt_megatron.config.stages import resolve_stages
from bt_megatron.data.batches import MicroBatch, build_micro_batch
from bt_megatron.model.fp8 import forget_models, free_copies
from bt_megatron.model.initialize import initialize_weights
from bt_megatron.model.layer_library import choose_layers
from bt_megatron.model.named_weights import named_shards
from bt_megatron.parallel.groups import build_groups
from bt_megatron.training.chunk import build_chunks, build_optimizer
from bt_megatron.training.step import StepResult, TrainingStep
from bt_megatron.training.step_graph import work_on_own_stream


@dataclass(frozen=True, slots=True)
class LayoutRun:
    """What one rank of a layout gave."""

    losses: list[float]
    """Nats per target of each step."""
    grad_norms: list[float]
    """Gradient norm of each step, before clipping."""
    gradients: dict[str, list[tuple[tuple[slice, ...], Tensor]]]
    """By canonical name: this rank's parts of the first step's gradient and their places, on
    CPU; padding of the vocabulary is cut off."""


def run_layout(config: RunConfig, *, steps: int) -> LayoutRun:
    """Take some optimizer steps from random weights, in this process's part of a layout.

    Args:
        config: the run; `train.steps` is not used.
        steps: optimizer steps.

    Comm: builds Megatron's groups and trains; must be called by all ranks.
    """
    with training_step(config) as step:
        _, targets, _ = step.accumulate(own_batches(config, step=0)).tolist()
        sums = own_gradients(step.chunks, vocab_size=config.model.vocab_size)
        gradients = {
            name: [(place, gradient / targets) for place, gradient in parts]
            for name, parts in sums.items()
        }
    with training_step(config) as step:  # again: reading gradients may have cut hooks off
        results = take_steps(step, config, range(steps))
    norms = [result.grad_norm for result in results]
    return LayoutRun([result.totals.loss for result in results], norms, gradients)


@contextlib.contextmanager
def training_step(config: RunConfig) -> Iterator[TrainingStep]:
    """Build Megatron's groups and this process's part of a model with random weights.

    Afterwards the step cannot be used any more: its memory is given back.

    Comm: creates groups; must be called by all ranks.
    """
    layers = choose_layers(config.kernels, precision=config.train.precision)
    if config.kernels.cuda_graphs:
        work_on_own_stream()
    build_groups(config.layout, seed=config.train.seed)
    try:
        stages = resolve_stages(config)
        chunks = build_chunks(config, stages, layers=layers.library)
        for chunk in chunks:
            initialize_weights(unwrap(chunk), config.model, seed=config.train.seed)
        step = TrainingStep(config, stages, chunks, build_optimizer(config, chunks))
        yield step
        _release(step)
    finally:
        forget_models()
        parallel_state.destroy_model_parallel()


def _release(step: TrainingStep) -> None:
    """Give a model's memory back: hooks of gradients keep it in a circle that is never freed."""
    step.graph = None  # and its memory
    for chunk in step.chunks:
        free_copies(unwrap(chunk))
        for buffer in chunk.buffers:
            for data in (buffer.grad_data, buffer.param_data):
                if data is not None:
                    data.untyped_storage().resize_(0)
        for param in chunk.parameters():
            param.data = torch.empty(0)
            param.main_grad = None
    for optimizer in step.optimizer.chained_optimizers:
        optimizer.optimizer.state.clear()
        for group in optimizer.optimizer.param_groups:
            for param in group["params"]:
                param.data, param.grad = torch.empty(0), None


def take_steps(step: TrainingStep, config: RunConfig, numbers: Iterable[int]) -> list[StepResult]:
    """Take optimizer steps with the numbers given, at the peak learning rate.

    Comm: the schedule's and the optimizer's; must be called by all ranks.
    """
    return [
        step.train(own_batches(config, step=number), lr=config.optimizer.lr) for number in numbers
    ]


def own_batches(config: RunConfig, *, step: int) -> list[MicroBatch]:
    """Return this data-parallel rank's micro-batches of random tokens.

    Comm: none.
    """
    rank, size = (
        parallel_state.get_data_parallel_rank(),
        parallel_state.get_data_parallel_world_size(),
    )
    together = config.batch.micro_batch_size * size
    first = step * config.batch.global_batch_size
    batches = []
    for start in range(
        rank * config.batch.micro_batch_size, config.batch.global_batch_size, together
    ):
        samples = [
            random_sample(config, position=first + start + index)
            for index in range(config.batch.micro_batch_size)
        ]
        tokens, masks = (torch.stack(part) for part in zip(*samples, strict=True))  # [b, s]
        batches.append(build_micro_batch(tokens, masks, target_shift=config.model.target_shift))
    return batches


def random_sample(config: RunConfig, *, position: int) -> tuple[Tensor, Tensor]:
    """Return tokens and mask [s] of one sequence, between a quarter and all of it real.

    The first block has pads in front, as data with random left padding.
    """
    length = config.data.seq_length
    draw = torch.Generator().manual_seed(config.data.seed * 1_000_003 + position)
    tokens = torch.randint(config.model.vocab_size, (length,), generator=draw)
    end = int(torch.randint(length // 4, length + 1, (), generator=draw))
    start = int(torch.randint(config.model.target_shift, (), generator=draw))
    mask = (torch.arange(length) >= start) & (torch.arange(length) < end)
    return tokens, mask


def own_gradients(
    chunks: Sequence[DistributedDataParallel], *, vocab_size: int
) -> dict[str, list[tuple[tuple[slice, ...], Tensor]]]:
    """Return this rank's parts of all gradients by canonical name.

    Under bf16 the model cannot be trained afterwards: float32 gradients take the place of the
    weights for a moment, and torch then forgets the hooks that collect further gradients.

    Comm: all-gathers over the dp and cp group with the distributed optimizer.
    """
    gradients: dict[str, list[tuple[tuple[slice, ...], Tensor]]] = {}
    for chunk in chunks:
        _gather_sharded_gradients(chunk)
        for name, place, gradient in _gradient_shards(chunk, vocab_size):
            gradients.setdefault(name, []).append((place, gradient))
    return gradients


def _gather_sharded_gradients(chunk: DistributedDataParallel) -> None:
    """Undo the reduce-scatter: afterwards every rank has the whole of each bucket."""
    if not chunk.ddp_config.use_distributed_optimizer:
        return
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    for buffer in chunk.buffers:
        for bucket in buffer.buckets:
            own = bucket.grad_data.chunk(group.size())[group.rank()].clone()
            dist.all_gather_into_tensor(bucket.grad_data, own, group=group)


@torch.no_grad()
def _gradient_shards(
    chunk: DistributedDataParallel, vocab_size: int
) -> Iterator[tuple[str, tuple[slice, ...], Tensor]]:
    """Yield gradients by the names and places of their weights.

    Names belong to the weights' storage, so the gradients take its place for a moment.
    """
    weights = [(param, param.data) for param in chunk.parameters()]
    try:
        for param, _ in weights:
            param.data = param.main_grad
        shards = [
            (shard, shard.data.detach().float().cpu().clone())
            for shard in named_shards(unwrap(chunk))
        ]
    finally:
        for param, weight in weights:
            param.data = weight
    for shard, gradient in shards:
        place = shard.place
        if shard.is_vocabulary_table:
            real = slice(place[0].start, max(place[0].start, min(place[0].stop, vocab_size)))
            place, gradient = (real, *place[1:]), gradient[: real.stop - real.start]
        yield shard.name, place, gradient


def whole_gradients(runs: Sequence[LayoutRun]) -> dict[str, Tensor]:
    """Put the gradients of all ranks together.

    Parts that several ranks hold are taken from the last of them, after a check that all
    have the same.

    Raises:
        AssertionError: replicas of a gradient differ.
    """
    parts: dict[str, dict[tuple[tuple[int, int], ...], Tensor]] = {}
    for run in runs:
        for name, shards in run.gradients.items():
            for place, gradient in shards:
                key = tuple((axis.start, axis.stop) for axis in place)
                other = parts.setdefault(name, {}).setdefault(key, gradient)
                assert torch.allclose(other, gradient, rtol=1e-6, atol=1e-9), (
                    f"{name}: replicas of its gradient differ"
                )
    return {name: _join(held) for name, held in parts.items()}


def _join(parts: dict[tuple[tuple[int, int], ...], Tensor]) -> Tensor:
    axes = len(next(iter(parts)))
    shape = [max(place[axis][1] for place in parts) for axis in range(axes)]
    whole = torch.full(shape, float("nan"))
    for place, gradient in parts.items():
        whole[tuple(slice(*ends) for ends in place)] = gradient
    assert not whole.isnan().any(), "every part of a gradient is on some rank"
    return whole
