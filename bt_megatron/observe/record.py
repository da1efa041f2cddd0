# SPDX-License-Identifier: Apache-2.0
"""What one logged step and one evaluation measured: the values every sink reads.

The console, `metrics.jsonl` and MLflow all take the same record, so that no
two of them can disagree. A metric's name is `<group>/<what>_<unit>` and stands
next to its field. A value that is not known is None (`n/a` on the console),
never a placeholder.
"""

import math
from dataclasses import Field, dataclass, field, fields
from typing import Any, ClassVar

SCHEMA = 1
"""Version of the objects in metrics.jsonl; it grows when a name changes its meaning."""


def _metric(name: str) -> Any:
    """Declare a field that is reported under a metric name."""
    return field(metadata={"metric": name})


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRecord:
    """One logged optimizer step."""

    kind: ClassVar[str] = "step"

    step: int
    """Optimizer steps taken, this one included."""
    total_steps: int
    """Optimizer steps of the whole run."""
    tokens: int = _metric("train/tokens")
    """Tokens consumed since the start of the run, over all processes."""
    loss: float = _metric("train/loss")
    """Cross entropy in nats per target token, over all processes."""
    grad_norm: float | None = _metric("train/grad_norm")
    """Norm of the gradient before clipping."""
    lr: float = _metric("train/lr")
    """Learning rate of this step."""
    skipped_steps: int = _metric("train/skipped_steps")
    """Steps since the start of this process whose batches were left out."""
    tokens_per_s: float = _metric("perf/tokens_per_s")
    """Tokens per second of all processes, since the last logged step."""
    tokens_per_s_per_device: float = _metric("perf/tokens_per_s_per_gpu")
    """The same for one GPU (one process, on CPU)."""
    tokens_per_s_average: float = _metric("perf/tokens_per_s_average")
    """Tokens per second of all processes, since the start of this process."""
    mfu: float | None = _metric("perf/mfu")
    """Part of the peak FLOP/s that went into the model, 0 to 1; None on an unknown device."""
    step_s: float = _metric("perf/step_s")
    """Seconds per optimizer step, since the last logged step."""
    data_wait_fraction: float = _metric("perf/data_wait_fraction")
    """Part of that time spent waiting for data, 0 to 1."""
    eta_s: float | None = _metric("perf/eta_s")
    """Seconds to the end of the run at the average rate."""
    memory_gib: float | None = _metric("mem/peak_reserved_gib")
    """Largest device memory reserved so far, over all processes."""
    memory_total_gib: float | None = _metric("mem/total_gib")
    """Memory of one device."""

    def __post_init__(self) -> None:
        """Refuse what no measurement gives, such as a loss of -1 from a rank without one."""
        assert 0 < self.step <= self.total_steps, f"step {self.step} of {self.total_steps}"
        assert not self.loss < 0, f"loss {self.loss}: a cross entropy is never negative"


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationRecord:
    """The loss on the validation split after a step."""

    kind: ClassVar[str] = "evaluation"

    step: int
    """Optimizer steps taken."""
    loss: float = _metric("validation/loss")
    """Cross entropy in nats per target token."""
    bits_per_byte: float | None = _metric("validation/bits_per_byte")
    """Bits per byte of the text that the targets spell; None without a tokenizer."""
    targets: int = _metric("validation/targets")
    """Target tokens that the loss is the mean of."""

    def __post_init__(self) -> None:
        """Refuse what no measurement gives."""
        assert not self.loss < 0, f"loss {self.loss}: a cross entropy is never negative"

    @property
    def perplexity(self) -> float:
        """e to the loss; infinite where that overflows."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


Record = StepRecord | EvaluationRecord


def metric_values(record: Record) -> dict[str, float | int | None]:
    """Return the record's metrics by name; None is a value that is not known."""
    named: tuple[Field[Any], ...] = tuple(f for f in fields(record) if "metric" in f.metadata)
    values = {f.metadata["metric"]: getattr(record, f.name) for f in named}
    if isinstance(record, EvaluationRecord):
        values["validation/perplexity"] = record.perplexity
    return values


def to_json_object(record: Record, *, wall_time_s: float) -> dict[str, Any]:
    """Return the flat object of one line of metrics.jsonl.

    Keys with a `/` are metrics; `schema`, `kind`, `time` (Unix seconds), `step`
    and `total_steps` describe the line.
    """
    head: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": record.kind,
        "time": wall_time_s,
        "step": record.step,
    }
    if isinstance(record, StepRecord):
        head["total_steps"] = record.total_steps
    return head | metric_values(record)
