# SPDX-License-Identifier: Apache-2.0
"""What `tools.bench_scaling` measured, as lines and rows; nothing here imports torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tools.benchmark_file import Row
from tools.job_runner import TIME_IS_UP
from tools.scaling_cases import ScalingCase

GIB = 2**30
LOSS_BAND = 0.02
"""In nats: a layout whose loss is farther from one GPU's does not train the same model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """A case and what came of it."""

    case: ScalingCase
    value: Mapping[str, Any] = field(default_factory=dict)
    """What `scaling_job.measure_case` returned."""
    error: str | None = None
    """Why there is nothing."""
    baseline: Mapping[str, Any] | None = None
    """What the case of one process returned, if there is one to compare with."""

    @property
    def efficiency(self) -> float | None:
        """Speed in units of as many GPUs each alone; of the same global batch."""
        if self.baseline is None or self.error is not None:
            return None
        alone = float(self.baseline["tokens_per_s"])
        return float(self.value["tokens_per_s"]) / (self.case.plan.world_size * alone)

    @property
    def loss_difference(self) -> float | None:
        """Difference of the loss of the last step of the trial, in nats."""
        if self.baseline is None or self.error is not None:
            return None
        return abs(float(self.value["losses"][-1]) - float(self.baseline["losses"][-1]))

    @property
    def is_skipped(self) -> bool:
        """Whether it is the clock that is to blame."""
        return self.error == TIME_IS_UP

    @property
    def is_good(self) -> bool:
        """Whether it ran and trains what one process trains."""
        apart = self.loss_difference
        return self.error is None and (apart is None or apart <= LOSS_BAND)


HEADING = (
    f"{'case':<36} {'tokens/s':>12} {'efficiency':>10} {'MFU':>6} {'exposed':>8} {'GiB':>6} "
    f"{'estimate':>8} {'loss':>9} {'apart':>8}"
)


def measured_line(measured: Measured) -> str:
    """Return the line of a case."""
    name, value = measured.case.name, measured.value
    if measured.error is not None:
        return f"{name:<36} {measured.error}"
    memory = value["memory"]
    apart = measured.loss_difference
    return (
        f"{name:<36} {value['tokens_per_s']:>12,.0f} {_percent(measured.efficiency):>10} "
        f"{_percent(value['mfu']):>6} {_percent(value['exposed']):>8} "
        f"{_number(None if memory is None else memory / GIB, '.1f'):>6} "
        f"{_estimate(measured.case):>8.1f} {value['losses'][-1]:>9.5f} {_number(apart, '.1e'):>8}"
        + ("" if measured.is_good else "  ANOTHER LOSS")
    )


PLAN_HEADING = (
    f"{'case':<36} {'processes':>9} {'micro-batches':>13} {'tokens/step':>11} {'GiB':>6} "
    f"{'bubble':>6} {'idle':>6}  stages"
)


def plan_line(case: ScalingCase) -> str:
    """Return what `plan` expects of a case."""
    plan = case.plan
    batches = f"{plan.micro_batches} x {case.config.batch.micro_batch_size}"
    return (
        f"{case.name:<36} {plan.world_size:>9} {batches:>13} {plan.tokens_per_step:>11,} "
        f"{_estimate(case):>6.1f} {plan.bubble:>6.1%} {plan.idle:>6.1%}  "
        f"{plan.layout if case.config.layout.pp > 1 else ''}"
    ).rstrip()


def rows_of(results: Sequence[Measured], *, prefix: str) -> list[Row]:
    """Return what is kept of the cases that ran; what could not be measured has no row.

    Args:
        results: of all cases.
        prefix: of their names.
    """
    return [row for result in results if result.error is None for row in _rows(result, prefix)]


def _rows(measured: Measured, prefix: str) -> list[Row]:
    case, value = measured.case, measured.value
    baseline = None if measured.baseline is None else measured.baseline["losses"][-1]
    details = {
        "tokens_per_s": {
            "global_batch_size": case.config.batch.global_batch_size,
            "seq_length": case.config.data.seq_length,
            "micro_batch_size": case.config.batch.micro_batch_size,
            "micro_batches": case.plan.micro_batches,
            "step_ms": [round(1000 * seconds, 1) for seconds in value["step_s"]],
            "stages": case.plan.layout,
        },
        "loss_difference": {
            "step": case.trial_steps,
            "sequences": case.trial_batch,
            "loss": value["losses"][-1],
            "one_process": baseline,
        },
        "exposed_communication": {
            "how": "kernels of NCCL and no others running, in one profiled step, mean of the ranks"
        },
    }
    values = (
        ("tokens_per_s", value["tokens_per_s"], "tokens/s"),
        ("efficiency", measured.efficiency, "of as many GPUs each alone"),
        ("mfu", value["mfu"], "of bf16 peak"),
        ("exposed_communication", value["exposed"], "of the step"),
        ("peak_memory_gib", _gib(value["memory"]), "GiB"),
        ("estimated_memory_gib", _estimate(case), "GiB"),
        ("loss_difference", measured.loss_difference, "nats"),
    )
    return [
        Row(
            case=f"{prefix}/{case.name}",
            metric=metric,
            value=number,
            unit=unit,
            detail=details.get(metric, {}),
        )
        for metric, number, unit in values
        if number is not None
    ]


def _gib(size: int | None) -> float | None:
    return None if size is None else size / GIB


def _estimate(case: ScalingCase) -> float:
    """Return what `plan` expects of the fullest process, in GiB."""
    return case.plan.processes[case.plan.fullest_process].memory.total / GIB


def _percent(value: float | None) -> str:
    return _number(value, ".1%")


def _number(value: float | None, form: str) -> str:
    return "n/a" if value is None else format(value, form)
