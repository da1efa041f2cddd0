# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.bench_training`: speed and memory of training, on random tokens.

One process, or several started by torchrun. A step is forward, backward, clipping and
AdamW over one global batch, timed between two synchronisations; the tokens are ready
before. Memory is the largest that torch has allocated on any device, beside `plan`'s
estimate of it. Utilisation counts the FLOPs of the formula in config/flops.py with full
attention, without recomputation.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from bt_megatron.config.load import from_mapping, load_model, to_mapping
from bt_megatron.config.plan import Plan, make_plan
from bt_megatron.config.schema import (
    BatchConfig,
    DataConfig,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
)
from bt_megatron.config.source import Section, Value, parse_setting
from bt_megatron.errors import BtError, ConfigError
from bt_megatron.parallel.groups import start_processes, stop_processes
from tools.benchmark_file import Row, write_benchmark
from tools.layout_run import own_batches, training_step
from tools.training_speed import (
    Memory,
    forget_memory,
    peak_memory,
    ready_batches,
    timed_step,
    utilisation,
)

GIB = 2**30
MODELS = Path(__file__).resolve().parents[1] / "configs" / "model"


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to measure."""

    name: str
    config: RunConfig
    plan: Plan


@dataclass(frozen=True, slots=True)
class Measured:
    """What a case gave."""

    step_s: list[float]
    memory: Memory | None
    """None without a GPU."""
    loss: float


def read_case(text: str, *, world_size: int) -> Case:
    """Read `MODEL[:KEY=VALUE,...]`, e.g. `block-420m:batch.micro_batch_size=16`.

    Batches have one micro batch per replica unless batch.global_batch_size is given.

    Raises:
        ConfigError: the model or a key is not known, or the layout does not fit.
    """
    model, _, settings = text.partition(":")
    path = MODELS / f"{model}.yaml"
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in MODELS.glob("*.yaml")))
        raise ConfigError(f"{model}: not a model of configs/model. Use one of {known}.")
    config = RunConfig(
        name="bench",
        model=load_model(path),
        data=DataConfig(path="none", random_left_padding=False, pad_to_block_boundary=False),
        batch=BatchConfig(global_batch_size=0),
        optimizer=OptimizerConfig(warmup_steps=0),
        train=TrainConfig(steps=1, precision="bf16"),
    )
    mapping = to_mapping(config)
    for setting in filter(None, settings.split(",")):
        _put(mapping, setting)
    config = from_mapping(RunConfig, mapping, text)
    if config.batch.global_batch_size == 0:
        replicas = world_size // config.layout.replica_size
        once = replicas * config.batch.micro_batch_size
        config = replace(config, batch=replace(config.batch, global_batch_size=once))
    case = f"train/{model}/{config.train.precision}"
    return Case(f"{case}/{settings}" if settings else case, config, make_plan(config, world_size))


def _put(mapping: dict[str, Any], setting: str) -> None:
    """Set one value of a nested mapping; `from_mapping` checks the result."""
    node: Section | Value = parse_setting(setting)
    while isinstance(node, Section):
        ((key, entry),) = node.entries.items()
        if isinstance(entry, Value):
            mapping[key] = entry.value
        else:
            mapping = mapping.setdefault(key, {})
        node = entry


def measure(case: Case, *, steps: int, warm_up: int) -> Measured:
    """Take steps of a case.

    Args:
        case: what is measured.
        steps: steps that are timed.
        warm_up: steps before these.

    Comm: those of training; a maximum over all ranks; must be called by all ranks.
    """
    forget_memory()
    with training_step(case.config) as step:
        batches = [ready_batches(case.config, step=number) for number in range(2)]
        timed = [
            timed_step(step, batches[number % 2], number=number)
            for number in range(warm_up + steps)
        ]
    return Measured([one.seconds for one in timed[warm_up:]], peak_memory(), timed[-1].loss)


def profile(case: Case) -> str:
    """Return a table of the kernels of two steps, longest first.

    Comm: those of training; must be called by all ranks.
    """
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with training_step(case.config) as step:
        batch = own_batches(case.config, step=0)
        for number in range(3):
            timed_step(step, batch, number=number)
        with torch.profiler.profile(activities=activities) as recorded:
            for number in range(2):
                timed_step(step, batch, number=number)
            torch.cuda.synchronize()
    averages = recorded.key_averages()
    return str(averages.table(sort_by="cuda_time_total", row_limit=30, max_name_column_width=70))


def rows_of(case: Case, measured: Measured) -> list[Row]:
    """Return what is written of a case."""
    step_s = statistics.median(measured.step_s)
    tokens_per_s = case.plan.tokens_per_step / step_s
    fullest = case.plan.processes[case.plan.fullest_process].memory.total
    detail = {
        "micro_batch_size": case.config.batch.micro_batch_size,
        "micro_batches": case.plan.micro_batches,
        "steps": len(measured.step_s),
        "step_ms": [round(1000 * second, 2) for second in sorted(measured.step_s)],
        "loss": measured.loss,
    }
    values = {"tokens_per_s": (tokens_per_s, "tokens/s")}
    if measured.memory is not None:
        values["peak_memory_gib"] = (measured.memory.allocated / GIB, "GiB")
        values["reserved_memory_gib"] = (measured.memory.reserved / GIB, "GiB")
        values["estimated_memory_gib"] = (fullest / GIB, "GiB")
        mfu = utilisation(case.plan, tokens_per_s, device=torch.cuda.get_device_name())
        if mfu is not None:
            values["mfu"] = (mfu, "of bf16 peak")
    return [
        Row(
            case=case.name,
            metric=metric,
            value=value,
            unit=unit,
            detail=detail if metric == "tokens_per_s" else {},
        )
        for metric, (value, unit) in values.items()
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    arguments = _parser().parse_args(argv)
    try:
        start_processes()
        rows = _measure_all(arguments)
        if arguments.benchmark and dist.get_rank() == 0:
            write_benchmark(arguments.benchmark, rows)
        stop_processes()
    except BtError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


def _measure_all(arguments: argparse.Namespace) -> list[Row]:
    cases = [read_case(text, world_size=dist.get_world_size()) for text in arguments.cases]
    rows: list[Row] = []
    for case in cases:
        try:
            found = rows_of(case, measure(case, steps=arguments.steps, warm_up=arguments.warm_up))
            if arguments.profile:
                _say(profile(case))
        except torch.OutOfMemoryError as error:
            found = []
            _say(f"{case.name}: does not fit: {str(error).splitlines()[0]}")
        rows += found
        values = {row.metric: row.value for row in found}
        if values:
            _say(_line(case.name, values))
    return rows


def _line(name: str, values: dict[str, float]) -> str:
    mfu = f"{values['mfu']:6.1%}" if "mfu" in values else "   n/a"
    memory = "memory n/a"
    if "peak_memory_gib" in values:
        memory = (
            f"{values['peak_memory_gib']:6.2f} GiB (estimate "
            f"{values['estimated_memory_gib']:.2f}, reserved {values['reserved_memory_gib']:.2f})"
        )
    return f"{name:<60} {values['tokens_per_s']:>12,.0f} tokens/s  mfu {mfu}  {memory}"


def _say(line: str) -> None:
    if dist.get_rank() == 0:
        print(line, flush=True)  # noqa: T201


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench_training",
        description="Measure training of models on this machine's GPUs.",
        epilog="example: python -m tools.bench_training block-420m:batch.micro_batch_size=16",
    )
    parser.add_argument("cases", nargs="+", metavar="MODEL[:KEY=VALUE,...]")
    parser.add_argument("--steps", type=int, default=20, help="timed steps (default: 20)")
    parser.add_argument("--warm-up", type=int, default=5, help="steps before (default: 5)")
    parser.add_argument("--profile", action="store_true", help="also list the longest kernels")
    parser.add_argument("--benchmark", type=Path, metavar="FILE", help="write the numbers there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
