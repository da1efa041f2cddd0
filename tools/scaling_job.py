# SPDX-License-Identifier: Apache-2.0
"""What the processes of `tools.bench_scaling` do: a trial, timed steps, one profiled step."""

import statistics
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from bt_megatron.config.load import from_mapping
from bt_megatron.config.plan import make_plan
from bt_megatron.config.schema import RunConfig
from bt_megatron.training.step import TrainingStep
from tools.layout_run import training_step
from tools.training_speed import (
    exposed_communication,
    forget_memory,
    peak_memory,
    ready_batches,
    timed_step,
    utilisation,
)

MIN_STEPS, MAX_STEPS = 2, 20


def measure_case(arguments: dict[str, Any]) -> dict[str, Any]:
    """Train a case of `scaling_cases`.

    First the trial, which is the warm-up too: steps on a smaller batch, whose losses do not
    depend on the layout. Then steps on the whole batch are timed.

    Args:
        arguments: `config` of the run, `trial_batch` and `trial_steps`, and `seconds` to go on
            timing for, within MIN_STEPS and MAX_STEPS.

    Returns:
        `losses` of the trial, `step_s` of the timed steps, `tokens_per_s`, and where it can be
        known `mfu`, `memory` in bytes and `exposed`, a part of the step.

    Comm: trains; must be called by all ranks.
    """
    config = from_mapping(RunConfig, arguments["config"], "job")
    plan = make_plan(config, dist.get_world_size())
    small = replace(config.batch, global_batch_size=arguments["trial_batch"])
    trial = replace(config, batch=small)
    forget_memory()
    with training_step(config) as step:
        losses = [
            timed_step(step, ready_batches(trial, step=number), number=number).loss
            for number in range(arguments["trial_steps"])
        ]
        times = _time_steps(step, config, first=len(losses), seconds=arguments["seconds"])
        memory = peak_memory()
        exposed = None
        if plan.world_size > 1:
            number = len(losses) + len(times)
            batches = ready_batches(config, step=number)
            exposed = exposed_communication(step, batches, number=number)
    tokens_per_s = plan.tokens_per_step / statistics.median(times)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "losses": losses,
        "step_s": times,
        "tokens_per_s": tokens_per_s,
        "mfu": utilisation(plan, tokens_per_s, device=device),
        "memory": None if memory is None else memory.allocated,
        "exposed": None if exposed is None else exposed.seconds / exposed.step_seconds,
    }


def _time_steps(
    step: TrainingStep, config: RunConfig, *, first: int, seconds: float
) -> list[float]:
    """Time steps from number `first` on until they took so many seconds on rank 0.

    Comm: those of training, a broadcast after each step; must be called by all ranks.
    """
    batches = ready_batches(config, step=first)
    times: list[float] = []
    while len(times) < MAX_STEPS:
        times.append(timed_step(step, batches, number=first + len(times)).seconds)
        spent = torch.tensor([sum(times)], device=torch.cuda.current_device())
        dist.broadcast(spent, src=0)
        if len(times) >= MIN_STEPS and spent.item() >= seconds:
            break
    return times
