# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.bench_training`: speed and memory of training, on random tokens.

One process, or several started by torchrun. A step is forward, backward, clipping and
AdamW over one global batch, timed between two synchronisations; the tokens are ready
before. Memory is the largest that torch has allocated on any device, beside `plan`'s
estimate of it. Utilisation counts the FLOPs of the formula in config/flops.py, attention once in
full and once under its causal mask, without recomputation.

With `--models` each model takes the largest micro-batch that `plan --device` suggests for
this GPU, or half of it if that is faster, and its steps are CUDA graphs; so does its vanilla twin.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist

from bt_megatron.config.devices import DEVICES
from bt_megatron.errors import BtError
from bt_megatron.parallel.groups import start_processes, stop_processes
from tools.benchmark_file import Row, write_benchmark
from tools.layout_run import own_batches, training_step
from tools.training_cases import TWINS, Case, read_case, tuned_cases
from tools.training_parts import time_parts
from tools.training_speed import forget_memory, peak_memory, ready_batches, timed_step
from tools.training_table import Measured, comparison, line_of, rows_of


@dataclass(frozen=True, slots=True)
class Effort:
    """How long a case is measured."""

    steps: int
    warm_up: int
    parts: bool = False
    """Whether one more step is timed part by part."""


def measure(case: Case, effort: Effort) -> Measured | None:
    """Take steps of a case; None if it does not fit.

    Comm: those of training; a maximum over all ranks; must be called by all ranks.
    """
    forget_memory()
    try:
        with training_step(case.config) as step:
            batches = [ready_batches(case.config, step=number) for number in range(2)]
            timed = [
                timed_step(step, batches[number % 2], number=number)
                for number in range(effort.warm_up + effort.steps)
            ]
            memory = peak_memory()
            parts = {}
            if effort.parts and torch.cuda.is_available():
                step.graph = None
                forget_memory()
                parts = time_parts(step, batches[0])
    except torch.OutOfMemoryError as error:
        _say(f"{case.name}: does not fit: {str(error).splitlines()[0]}")
        return None
    seconds = [one.seconds for one in timed[effort.warm_up :]]
    return Measured(case, seconds, memory, timed[-1].loss, parts)


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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    arguments = _parser().parse_args(argv)
    try:
        start_processes()
        bench = Bench(arguments)
        bench.measure_cases()
        bench.measure_models()
        stop_processes()
    except BtError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


class Bench:
    """Measures what was asked for; what is measured is written at once."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Take the arguments of the command."""
        self._arguments = arguments
        self._effort = Effort(arguments.steps, arguments.warm_up, arguments.parts)
        self._rows: list[Row] = []

    def measure_cases(self) -> None:
        """Measure each case that was written out."""
        size = dist.get_world_size()
        for case in [read_case(text, world_size=size) for text in self._arguments.cases]:
            self._keep(measure(case, self._effort))
            if self._arguments.profile:
                _say(profile(case))

    def measure_models(self) -> None:
        """Measure the models of `--models`, each beside its twin, and print the comparison."""
        arguments = self._arguments
        found: dict[str, Measured] = {}
        for model in arguments.models:
            names = [f"block-{model}"]
            names += [TWINS[model]] if "vanilla" in arguments.against else []
            for name in names:
                cases = tuned_cases(name, arguments.settings, device=arguments.device)
                best = fastest(measure(case, self._effort) for case in cases)
                if best is not None:
                    named = replace(best.case, name=f"train/{name}/{best.case.precision}")
                    found[name] = replace(best, case=named)
                    self._keep(found[name])
        if found:
            official = "official-numbers" in arguments.against
            _say(comparison(found, official=official))

    def _keep(self, measured: Measured | None) -> None:
        if measured is None:
            return
        rows = rows_of(measured)
        self._rows += rows
        _say(line_of(measured.case.name, rows))
        if self._arguments.benchmark and dist.get_rank() == 0:
            write_benchmark(self._arguments.benchmark, self._rows)


def fastest(measured: Iterable[Measured | None]) -> Measured | None:
    """Return what gave the most tokens a second; None if nothing fits."""
    fitting = [one for one in measured if one is not None]
    return max(fitting, key=lambda one: one.tokens_per_s, default=None)


def _say(line: str) -> None:
    if dist.get_rank() == 0:
        print(line, flush=True)  # noqa: T201


def _names(allowed: Iterable[str]) -> Callable[[str], list[str]]:
    known = tuple(allowed)

    def read(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name}: not one of {', '.join(known)}")
        return names

    return read


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench_training",
        description="Measure training of models on this machine's GPUs.",
        epilog="example: python -m tools.bench_training --models 170m,420m,1.2b "
        "--against vanilla,official-numbers --benchmark docs/benchmarks/training.json",
    )
    parser.add_argument("cases", nargs="*", metavar="MODEL[:KEY=VALUE,...]")
    parser.add_argument("--models", type=_names(TWINS), default=[], help=", ".join(TWINS))
    parser.add_argument(
        "--against",
        type=_names(("vanilla", "official-numbers")),
        default=[],
        help="vanilla: GPTs of as many parameters, in the same run; official-numbers: the "
        "official code on an H100 (docs/benchmarks/official.json)",
    )
    parser.add_argument("--settings", default="", help="KEY=VALUE,... for all of --models")
    parser.add_argument("--device", choices=DEVICES, default="h100-80gb", help="of --models")
    parser.add_argument("--steps", type=int, default=20, help="timed steps (default: 20)")
    parser.add_argument("--warm-up", type=int, default=5, help="steps before (default: 5)")
    parser.add_argument("--parts", action="store_true", help="also time the parts of a model")
    parser.add_argument("--profile", action="store_true", help="also list the longest kernels")
    parser.add_argument("--benchmark", type=Path, metavar="FILE", help="write the numbers there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
