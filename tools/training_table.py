# SPDX-License-Identifier: Apache-2.0
"""What the training benchmark prints and writes of a measurement."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bt_megatron.config.flops import forward_flops
from tools.benchmark_file import Row
from tools.training_cases import TWINS, Case
from tools.training_speed import Memory, utilisation

GIB = 2**30
OFFICIAL = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "official.json"


@dataclass(frozen=True, slots=True)
class Measured:
    """What a case gave."""

    case: Case
    step_s: list[float]
    memory: Memory | None
    """None without a GPU."""
    loss: float
    parts: dict[str, float] = field(default_factory=dict)
    """Milliseconds by part, if they were timed."""

    @property
    def tokens_per_s(self) -> float:
        """Tokens by the median of the steps."""
        return self.case.plan.tokens_per_step / statistics.median(self.step_s)


def rows_of(measured: Measured) -> list[Row]:
    """Return what is written of a measurement."""
    case, config = measured.case, measured.case.config
    detail = {
        "micro_batch_size": config.batch.micro_batch_size,
        "micro_batches": case.plan.micro_batches,
        "cuda_graphs": config.kernels.cuda_graphs,
        "steps": len(measured.step_s),
        "step_ms": [round(1000 * second, 2) for second in sorted(measured.step_s)],
        "loss": measured.loss,
    }
    values = [("tokens_per_s", measured.tokens_per_s, "tokens/s", detail)]
    values += [(*value, {}) for value in _gpu_values(measured)]
    total = sum(measured.parts.values())
    values += [
        ("part_ms", milliseconds, "ms", {"part": part, "of_ms": total})
        for part, milliseconds in measured.parts.items()
    ]
    return [
        Row(case=case.name, metric=metric, value=value, unit=unit, detail=more)
        for metric, value, unit, more in values
    ]


def _gpu_values(measured: Measured) -> list[tuple[str, float, str]]:
    """Return metric, value and unit of what only a GPU has."""
    if measured.memory is None:
        return []
    plan = measured.case.plan
    fullest = plan.processes[plan.fullest_process].memory.total
    values = [
        ("peak_memory_gib", measured.memory.allocated / GIB, "GiB"),
        ("reserved_memory_gib", measured.memory.reserved / GIB, "GiB"),
        ("estimated_memory_gib", fullest / GIB, "GiB"),
    ]
    device = torch.cuda.get_device_name()
    mfu = utilisation(plan, measured.tokens_per_s, device=device)
    if mfu is not None:
        config = measured.case.config
        causal = forward_flops(
            config.model, seq_length=config.data.seq_length, convention="causal"
        ).training_per_token
        values.append(("mfu", mfu, "of bf16 peak"))
        share = causal / plan.flops.training_per_token
        values.append(("mfu_causal", mfu * share, "of bf16 peak"))
    return values


def line_of(name: str, rows: Sequence[Row]) -> str:
    """Return one line about a case."""
    values = {row.metric: row.value for row in rows}
    mfu = f"{values['mfu']:6.1%}" if "mfu" in values else "   n/a"
    memory = "memory n/a"
    if "peak_memory_gib" in values:
        memory = (
            f"{values['peak_memory_gib']:6.2f} GiB (estimate "
            f"{values['estimated_memory_gib']:.2f}, reserved {values['reserved_memory_gib']:.2f})"
        )
    line = f"{name:<60} {values['tokens_per_s']:>12,.0f} tokens/s  mfu {mfu}  {memory}"
    parts = [
        f"    {row.detail['part']:<26} {row.value:8.2f} ms  {row.value / row.detail['of_ms']:6.1%}"
        for row in rows
        if row.metric == "part_ms"
    ]
    return "\n".join([line, *parts])


def comparison(found: Mapping[str, Measured], *, official: bool) -> str:
    """Return the table of models beside their twins and the official code.

    Args:
        found: by model of configs/model.
        official: whether to put the official code's figures beside them.
    """
    theirs = official_tokens_per_s() if official else {}
    lines = [
        f"{'model':<14}{'micro-batch':>12}{'tokens/s':>12}{'vs vanilla':>12}{'vs official':>12}"
    ]
    twins = {f"block-{model}": twin for model, twin in TWINS.items()}
    for name, measured in found.items():
        twin, other = found.get(twins.get(name, "")), theirs.get(name)
        lines.append(
            f"{name:<14}{measured.case.config.batch.micro_batch_size:>12}"
            f"{measured.tokens_per_s:>12,.0f}"
            f"{_times(measured.tokens_per_s, twin.tokens_per_s if twin else None):>12}"
            f"{_times(measured.tokens_per_s, other):>12}"
        )
    return "\n".join(lines)


def _times(value: float, other: float | None) -> str:
    return "" if other is None else f"{value / other:.2f}x"


def official_tokens_per_s() -> dict[str, float]:
    """Return what the official code trains at on one H100, by model."""
    rows = json.loads(OFFICIAL.read_text())["rows"]
    names = {row["case"].split("/")[1]: row["value"] for row in rows if row["case"][:5] == "train"}
    return {name: float(value) for name, value in names.items()}
