# SPDX-License-Identifier: Apache-2.0
"""How long training steps take, what memory they need, and when ranks only communicate."""

import gc
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist

from bt_megatron.config.plan import Plan
from bt_megatron.config.schema import RunConfig
from bt_megatron.data.batches import MicroBatch
from bt_megatron.observe.flops_peak import peak_bf16_flops_per_s
from bt_megatron.training.step import TrainingStep
from tools.layout_run import own_batches

LR = 1e-4
COMMUNICATION = "nccl"
"""What the names of NCCL's kernels begin with."""

Interval = tuple[float, float]
"""Begin and end, in any unit."""


class Timed(NamedTuple):
    """One step."""

    seconds: float
    """Forward, backward, clipping and AdamW, between two synchronisations."""
    loss: float
    """In nats."""


class Memory(NamedTuple):
    """The most that any device had since `forget_memory`, in bytes."""

    allocated: int
    """By torch's tensors."""
    reserved: int
    """By torch's allocator."""


class Exposed(NamedTuple):
    """Time in which communication kernels ran and no others, on average over the ranks."""

    seconds: float
    step_seconds: float
    """Of the profiled step."""


def forget_memory() -> None:
    """Free what is cached and forget how much memory was used."""
    gc.collect()
    torch.cuda.empty_cache()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> Memory | None:
    """Return the largest use of memory of all devices; None without a GPU.

    Comm: an all-reduce of two numbers over all ranks.
    """
    if not torch.cuda.is_available():
        return None
    most = torch.tensor([torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()])
    most = most.cuda()
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return Memory(*most.tolist())


def ready_batches(config: RunConfig, *, step: int) -> list[MicroBatch]:
    """Return this rank's micro-batches of a step in memory that is quickly copied.

    Comm: none.
    """
    return [batch.pin_memory() for batch in own_batches(config, step=step)]


def timed_step(step: TrainingStep, batches: Sequence[MicroBatch], *, number: int) -> Timed:
    """Take a step and time it.

    Comm: those of training; must be called by all ranks.
    """
    torch.cuda.synchronize()
    start = time.perf_counter()
    loss = step.train(batches, lr=LR).totals.loss
    torch.cuda.synchronize()
    return Timed(time.perf_counter() - start, loss)


def exposed_communication(
    step: TrainingStep, batches: Sequence[MicroBatch], *, number: int
) -> Exposed | None:
    """Take a step under the profiler; None without a GPU.

    A kernel that receives runs from when it waits to when it has received: waiting for other
    ranks counts, as in the bubble of a pipeline.

    Comm: those of training, an all-reduce of two numbers; must be called by all ranks.
    """
    if not torch.cuda.is_available():
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as recorded:
        seconds, _ = timed_step(step, batches, number=number)
    communication: list[Interval] = []
    computation: list[Interval] = []
    for event in recorded.events():
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation:
            is_nccl = event.name.startswith(COMMUNICATION)
            kind = communication if is_nccl else computation
            kind.append((event.time_range.start, event.time_range.end))  # microseconds
    alone = time_alone(communication, computation) / 1e6
    both = torch.tensor([alone, seconds], dtype=torch.float64, device="cuda")
    dist.all_reduce(both)
    return Exposed(*(both / dist.get_world_size()).tolist())


def time_alone(intervals: Iterable[Interval], others: Iterable[Interval]) -> float:
    """Return for how long any of the intervals ran and none of the others."""
    others = list(others)
    return _covered([*intervals, *others]) - _covered(others)


def _covered(intervals: Iterable[Interval]) -> float:
    """Return the length of a union of intervals."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def utilisation(plan: Plan, tokens_per_s: float, *, device: str) -> float | None:
    """Return the part of the devices' bf16 peak that is used; None if that is not known.

    FLOPs are those of config/flops.py with full attention, without recomputation.
    """
    peak = peak_bf16_flops_per_s(device)
    if peak is None:
        return None
    return tokens_per_s * plan.flops.training_per_token / (peak * plan.world_size)
