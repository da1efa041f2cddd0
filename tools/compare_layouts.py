# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.compare_layouts`: is a layout the training of one process?

Every layout that the processes can have takes a few optimizer steps of a small model, from
the same weights and on the same sequences as one process, and its losses and each gradient of
the first step are compared. In float32 with torch's layers, where nothing but the order of
sums differs; on GPUs also in bf16, with Transformer Engine's layers if it is there. Exit code
1 if a layout fails or is over the limits.

The limits are those of the small models. In larger ones with ReLU, rounding moves single sums
across zero, which changes a gradient of float32 by some 1e-4 of its norm.
"""

import argparse
import contextlib
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from bt_megatron.config.load import load_model, to_mapping
from bt_megatron.config.params import count_parameters
from bt_megatron.config.schema import ModelConfig, RunConfig
from bt_megatron.errors import BtError, ConfigError
from tools.benchmark_file import write_benchmark
from tools.job_runner import Crew, Job, run_jobs
from tools.layout_cases import LayoutCase, layout_cases, small_model, small_run
from tools.layout_table import (
    BF16_ITSELF,
    PRECISIONS,
    Limits,
    Precision,
    Result,
    heading,
    limits_of,
    line,
    rows_of,
    summary,
)

INTERRUPTED = 130
SMALL_MODELS = ("block", "vanilla")


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """What is compared."""

    run: RunConfig
    """On one process."""
    cases: list[LayoutCase]
    """The same in layouts."""
    precisions: tuple[Precision, ...]
    on_cpu: bool
    folder: Path
    """For results on their way from process to process."""

    def expected(self, precision: str) -> str:
        """Return the file with the run of one process."""
        return str(self.folder / f"{precision}.expected")

    @property
    def width(self) -> int:
        """Width of the table's first column."""
        return max(len("one-against-fp32"), *(len(case.name) for case in self.cases))


def run_one_process(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """Run on one process and return what `measure_one_process` gave, by precision.

    Raises:
        BtError: it failed, so that there is nothing to compare with.
    """
    jobs = [
        Job(
            name=precision,
            function="tools.layout_jobs:measure_one_process",
            arguments={
                "config": to_mapping(_in(comparison.run, precision)),
                "steps": comparison.run.train.steps,
                "save": comparison.expected(precision),
                "against": comparison.expected("fp32") if precision != "fp32" else None,
            },
        )
        for precision in comparison.precisions
    ]
    crew = Crew(processes=1, on_cpu=comparison.on_cpu, folder=comparison.folder)
    values = {}
    with contextlib.closing(run_jobs(jobs, crew)) as outcomes:
        for outcome in outcomes:
            if outcome.error is not None:
                raise BtError(f"one process, {outcome.name}: {outcome.error}")
            values[outcome.name] = outcome.value
    return values


def bf16_itself(run: RunConfig, *, layers: str, own: dict[str, Any]) -> Result:
    """Return what bf16 differs from float32 on one process, as a result like those of layouts."""
    case = LayoutCase(name="one-against-fp32", processes=1, config=run, cut="")
    return Result(case=case, precision="bf16", limits=BF16_ITSELF, layers=layers, difference=own)


def run_layouts(comparison: Comparison, precision: Precision, limits: Limits) -> Iterator[Result]:
    """Yield the result of each layout, those of the same processes one after another."""
    for processes in sorted({case.processes for case in comparison.cases}):
        cases = [case for case in comparison.cases if case.processes == processes]
        jobs = [
            Job(
                name=case.name,
                function="tools.layout_jobs:measure_layout",
                arguments={
                    "config": to_mapping(_in(case.config, precision)),
                    "steps": comparison.run.train.steps,
                    "expected": comparison.expected(precision),
                    "folder": str(comparison.folder),
                },
            )
            for case in cases
        ]
        crew = Crew(processes=processes, on_cpu=comparison.on_cpu, folder=comparison.folder)
        with contextlib.closing(run_jobs(jobs, crew)) as outcomes:
            for case, outcome in zip(cases, outcomes, strict=True):
                yield Result(
                    case=case,
                    precision=precision,
                    limits=limits,
                    error=outcome.error,
                    **(outcome.value or {}),
                )


def compare(comparison: Comparison) -> list[Result]:
    """Run everything and print it as it comes.

    Raises:
        BtError: one process fails, or processes do not start.
    """
    known = run_one_process(comparison)
    results = []
    for precision in comparison.precisions:
        own = known[precision]["difference"]
        limits = limits_of(precision, on_cpu=comparison.on_cpu, own=own)
        layers = known[precision]["layers"]
        _say(*heading(precision, limits, layers=layers, width=comparison.width))
        for result in chain(
            [bf16_itself(comparison.run, layers=layers, own=own)] if own else [],
            run_layouts(comparison, precision, limits),
        ):
            _say(line(result, width=comparison.width))
            results.append(result)
    return results


def _in(config: RunConfig, precision: Precision) -> RunConfig:
    return replace(config, train=replace(config.train, precision=precision))


def choose_cases(
    run: RunConfig, processes: Sequence[int], names: Sequence[str]
) -> list[LayoutCase]:
    """Return the layouts that work, of all or of those named, and say which are refused.

    Raises:
        ConfigError: a name is not one of a layout, or none is left.
    """
    every = [case for number in processes for case in layout_cases(run, number)]
    if unknown := set(names) - {case.name for case in every}:
        raise ConfigError(
            f"--layouts {', '.join(sorted(unknown))}: {_numbers(processes)} processes have no such "
            f"layout. Use some of {', '.join(case.name for case in every)}."
        )
    chosen = [case for case in every if not names or case.name in names]
    for case in chosen:
        if case.refusal:
            _say(f"left out: {case.name}: {case.refusal.splitlines()[0]}")
    chosen = [case for case in chosen if not case.refusal]
    if not chosen:
        raise ConfigError("--layouts: the rules refuse all of these. Leave it out to run all.")
    return chosen


def choose_model(name: str, *, processes: int) -> ModelConfig:
    """Return a small model by name, or the one of a file.

    Raises:
        ConfigError: the file does not describe a model.
    """
    return small_model(name, processes=processes) if name in SMALL_MODELS else load_model(name)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _run(arguments)
    except BtError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except KeyboardInterrupt:
        _say("interrupted; nothing was written")
        return INTERRUPTED


def _run(arguments: argparse.Namespace) -> int:
    gpus = 0 if arguments.cpu else count_gpus()
    processes = arguments.processes or ([gpus] if gpus else [2])
    if gpus and max(processes) > gpus:
        raise ConfigError(
            f"--processes {max(processes)}: there are {gpus} GPUs. Use at most {gpus}, or --cpu."
        )
    results, rows = [], []
    for name in arguments.model:
        model = choose_model(name, processes=max(processes))
        run = small_run(model, processes, steps=arguments.steps)
        title = name if name in SMALL_MODELS else Path(name).stem
        with tempfile.TemporaryDirectory(prefix="layouts-") as folder:
            comparison = Comparison(
                run=run,
                cases=choose_cases(run, processes, arguments.layouts),
                precisions=tuple(arguments.precisions or (PRECISIONS if gpus else PRECISIONS[:1])),
                on_cpu=not gpus,
                folder=Path(folder),
            )
            _say(*describe(comparison, title))
            found = compare(comparison)
        detail = {"model": describe_model(run.model, title), "steps": run.train.steps}
        rows += rows_of(found, model=title, detail=detail)
        results += found
    _say("", summary(results))
    if arguments.benchmark is not None:
        write_benchmark(arguments.benchmark, rows)
    return 0 if all(result.is_good for result in results) else 1


def describe_model(model: ModelConfig, name: str) -> str:
    """Return name and size of a model."""
    return f"{name}, {count_parameters(model).total:,} parameters"


def describe(comparison: Comparison, name: str) -> list[str]:
    """Return the lines that say what is run."""
    run = comparison.run
    numbers = sorted({case.processes for case in comparison.cases})
    where = "CPU processes" if comparison.on_cpu else "GPUs"
    return [
        "",
        f"{describe_model(run.model, name)}; {run.train.steps} steps of "
        f"{run.batch.global_batch_size} sequences of {run.data.seq_length} tokens; "
        f"{len(comparison.cases)} layouts of {_numbers(numbers)} {where}",
    ]


def count_gpus() -> int:
    """Return how many GPUs are visible."""
    import torch  # late: --help needs none

    return torch.cuda.device_count()


def _numbers(numbers: Sequence[int]) -> str:
    return " and ".join(str(number) for number in numbers)


def _say(*lines: str) -> None:
    for text in lines:
        print(text, flush=True)  # noqa: T201


def _several(text: str) -> list[int]:
    numbers = [int(part) if part.isdecimal() else 0 for part in text.split(",")]
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of numbers such as 2,4")
    return sorted(set(numbers))


def _precisions(text: str) -> list[str]:
    chosen = text.split(",")
    if not set(chosen) <= set(PRECISIONS):
        raise argparse.ArgumentTypeError(f"'{text}' is none of fp32 | fp32,bf16")
    return list(PRECISIONS[: 2 if "bf16" in chosen else 1])  # bf16 is judged by float32


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.compare_layouts",
        description="Compare losses and gradients of every layout with those of one process.",
        epilog="example: python -m tools.compare_layouts --processes 2,4",
    )
    parser.add_argument(
        "--processes",
        type=_several,
        metavar="N[,N]",
        help="sizes of the layouts (default: all visible GPUs; without a GPU 2)",
    )
    parser.add_argument("--cpu", action="store_true", help="gloo on CPU, also where GPUs are")
    parser.add_argument(
        "--model",
        type=lambda text: text.split(","),
        default=["block"],
        metavar="NAME[,NAME]",
        help="block (default), vanilla, both small, or files such as configs/model/block-33m.yaml",
    )
    parser.add_argument(
        "--layouts",
        type=lambda text: text.split(","),
        default=[],
        metavar="NAME[,NAME]",
        help="only these, by the names of the table",
    )
    parser.add_argument(
        "--precisions",
        type=_precisions,
        metavar="NAMES",
        help="fp32 | fp32,bf16 (default: both on GPUs)",
    )
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps (default: 3)")
    parser.add_argument("--benchmark", type=Path, metavar="FILE", help="write the numbers there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
