# SPDX-License-Identifier: Apache-2.0
"""How fast a run goes, measured between two logged steps and since the start."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import torch
import torch.distributed as dist

from bt_megatron.config.plan import Plan
from bt_megatron.observe.flops_peak import peak_bf16_flops_per_s
from bt_megatron.observe.record import StepRecord

GIB = 2**30


@dataclass
class _Interval:
    start_s: float
    steps: int = 0
    waited_s: float = 0.0


class Meter:
    """Counts steps and waiting time; everything is measured, nothing assumed."""

    def __init__(self, plan: Plan) -> None:
        """Start the clock.

        Args:
            plan: gives tokens per step and FLOPs per token.
        """
        self._plan = plan
        self._peak = None
        if torch.cuda.is_available():
            self._peak = peak_bf16_flops_per_s(torch.cuda.get_device_name())
        now = time.monotonic()
        self._recent, self._all = _Interval(now), _Interval(now)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        start = time.monotonic()
        yield
        self._recent.waited_s += time.monotonic() - start

    @contextlib.contextmanager
    def pausing(self) -> Iterator[None]:
        """Leave the time inside out: evaluations and checkpoints are not training speed."""
        start = time.monotonic()
        yield
        paused = time.monotonic() - start
        self._recent.start_s += paused
        self._all.start_s += paused

    def count_step(self) -> None:
        """Count a step that was taken."""
        self._recent.steps += 1
        self._all.steps += 1

    def record(
        self, *, step: int, loss: float, grad_norm: float, lr: float, skipped_steps: int
    ) -> StepRecord:
        """Return the record of a logged step and start a new interval.

        Args:
            step: steps taken, this one included.
            loss: nats per target.
            grad_norm: before clipping.
            lr: of this step.
            skipped_steps: since the start of this process.

        Comm: a maximum over all ranks (memory); must be called by all.
        """
        now = time.monotonic()
        recent, self._recent = self._recent, _Interval(now)
        tokens_per_s = self._rate(recent, now)
        average = self._rate(self._all, now)
        remaining = (self._plan.steps - step) * self._plan.tokens_per_step
        used, total = peak_memory_gib()
        return StepRecord(
            step=step,
            total_steps=self._plan.steps,
            tokens=step * self._plan.tokens_per_step,
            loss=loss,
            grad_norm=grad_norm,
            lr=lr,
            skipped_steps=skipped_steps,
            tokens_per_s=tokens_per_s,
            tokens_per_s_per_device=tokens_per_s / self._plan.world_size,
            tokens_per_s_average=average,
            mfu=self._utilisation(tokens_per_s),
            step_s=(now - recent.start_s) / recent.steps,
            data_wait_fraction=recent.waited_s / (now - recent.start_s),
            eta_s=remaining / average,
            memory_gib=used,
            memory_total_gib=total,
        )

    def _rate(self, interval: _Interval, now: float) -> float:
        return interval.steps * self._plan.tokens_per_step / (now - interval.start_s)

    def _utilisation(self, tokens_per_s: float) -> float | None:
        if self._peak is None:
            return None
        flops_per_s = tokens_per_s * self._plan.flops.training_per_token
        return flops_per_s / (self._peak * self._plan.world_size)


def peak_memory_gib() -> tuple[float, float]:
    """Return the largest memory reserved by any process so far, and the memory of one device.

    On CPU: the resident memory of a process now, and the memory of the machine.

    Comm: a maximum over all ranks; must be called by all.
    """
    if torch.cuda.is_available():
        used = float(torch.cuda.max_memory_reserved())
        total = float(torch.cuda.get_device_properties(0).total_memory)
    else:
        used = float(psutil.Process().memory_info().rss)
        total = float(psutil.virtual_memory().total)
    most = torch.tensor(used, dtype=torch.float64, device=torch.cuda.current_device())
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return float(most) / GIB, total / GIB
