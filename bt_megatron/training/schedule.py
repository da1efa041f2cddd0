# SPDX-License-Identifier: Apache-2.0
"""The learning rate of a step: warm-up, then a cosine down to a part of the peak.

The values are those of the reference, which uses DeepSpeed's WarmupCosineLR: its
cosine is one step ahead of the warm-up (b - warmup + 1), so that the last entry is
exactly the minimum. A rate is a pure function of the step; there is nothing to save.
"""

import math
from typing import Literal

from bt_megatron.config.schema import OptimizerConfig


def learning_rate(step: int, optimizer: OptimizerConfig, total_steps: int) -> float:
    """Return the learning rate of one optimizer step.

    Args:
        step: Optimizer step from 0. Step n uses entry n of the schedule, so the first
            one of a warmed-up run has rate 0 (current DeepSpeed; 0.14.2 used the peak
            for its first step and entry n - 1 afterwards).
        optimizer: The schedule.
        total_steps: `train.steps`, where the cosine ends unless decay_steps is set.
    """
    return schedule_value(
        step,
        peak=optimizer.lr,
        min_ratio=optimizer.min_lr_ratio,
        warmup=optimizer.warmup,
        warmup_steps=optimizer.warmup_steps,
        decay_steps=optimizer.decay_steps or total_steps,
    )


def schedule_value(
    entry: int,
    *,
    peak: float,
    min_ratio: float,
    warmup: Literal["linear", "log"],
    warmup_steps: int,
    decay_steps: int,
) -> float:
    """Return entry b of the schedule.

    b < w:  peak * b / w (linear) or peak * log(b + 1) / log(w) (log)
    else:   peak * (m + (1 - m) * (1 + cos(pi * (b - w + 1) / (d - w))) / 2)
            with w warmup_steps, m min_ratio, d decay_steps; peak * m from b = d - 1 on,
            where the reference's cosine would rise again.

    Args:
        entry: b, from 0.
        peak: Largest learning rate.
        min_ratio: The cosine ends at this part of the peak.
        warmup: Shape of the warm-up.
        warmup_steps: Entries of warm-up; log needs at least 2.
        decay_steps: The cosine ends with entry decay_steps - 1.
    """
    if entry < warmup_steps:
        return peak * _warmup_ratio(entry, warmup, warmup_steps)
    decayed = min(entry - warmup_steps + 1, decay_steps - warmup_steps)
    cosine = (1 + math.cos(math.pi * decayed / (decay_steps - warmup_steps))) / 2
    return peak * (min_ratio + (1 - min_ratio) * cosine)


def _warmup_ratio(entry: int, warmup: Literal["linear", "log"], warmup_steps: int) -> float:
    """Return the part of the peak that a warm-up entry has."""
    if warmup == "linear":
        return entry / warmup_steps
    return 1.0 / math.log(warmup_steps) * math.log(entry + 1)
