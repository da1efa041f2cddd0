# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.bench_scaling`: how training grows from one to eight GPUs.

Each case (`tools/scaling_cases.py`) trains on random tokens with the global batch of the
paper. Of each:

    tokens/s     median of the timed steps, and with it the efficiency: in units of as many
                 GPUs each alone, at the same global batch
    exposed      part of a profiled step in which kernels of NCCL run and no others, on
                 average over the ranks; waiting for another rank counts (the bubble of a
                 pipeline, stragglers)
    loss         after ten steps of a smaller batch, and how far it is from one GPU's

Cases that the time does not suffice for are named. Exit code 1 if a case fails or its loss
is another one's.
"""

import argparse
import contextlib
import signal
import sys
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from bt_megatron.config.load import to_mapping
from bt_megatron.errors import BtError, ConfigError
from tools.benchmark_file import write_benchmark
from tools.job_runner import Crew, Job, run_jobs
from tools.scaling_cases import ORDER, ScalingCase, scaling_cases
from tools.scaling_table import (
    HEADING,
    PLAN_HEADING,
    Measured,
    measured_line,
    plan_line,
    rows_of,
)

INTERRUPTED = 130
MINUTES = 9.0


def measure_cases(
    cases: Sequence[ScalingCase], *, on_cpu: bool, folder: Path, deadline: float
) -> Generator[Measured]:
    """Yield what came of each case, those of the same processes one after another.

    Args:
        cases: in the order in which they are run.
        on_cpu: whether GPUs are left alone.
        folder: for results on their way from process to process.
        deadline: in the time of `time.monotonic`.

    Raises:
        RankError: processes do not start.
    """
    known: dict[str, Mapping[str, Any]] = {}
    for processes, group in groupby(cases, key=lambda case: case.plan.world_size):
        together = list(group)
        crew = Crew(processes=processes, on_cpu=on_cpu, folder=folder, deadline=deadline)
        with contextlib.closing(run_jobs([_job(case) for case in together], crew)) as outcomes:
            for case, outcome in zip(together, outcomes, strict=True):
                if outcome.error is None:
                    known[case.name] = outcome.value
                yield Measured(
                    case=case,
                    value=outcome.value or {},
                    error=outcome.error,
                    baseline=known.get(case.baseline or ""),
                )


def _job(case: ScalingCase) -> Job:
    return Job(
        name=case.name,
        function="tools.scaling_job:measure_case",
        arguments={
            "config": to_mapping(case.config),
            "trial_batch": case.trial_batch,
            "trial_steps": case.trial_steps,
            "seconds": case.seconds,
        },
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _run(arguments, deadline=time.monotonic() + 60 * arguments.minutes)
    except BtError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except KeyboardInterrupt:
        _say("interrupted; nothing was written")
        return INTERRUPTED


def _run(arguments: argparse.Namespace, *, deadline: float) -> int:
    cases = _choose(arguments)
    if arguments.dry_run:
        _say(PLAN_HEADING, *map(plan_line, cases))
        return 0
    results = []
    _say(HEADING)
    with tempfile.TemporaryDirectory(prefix="scaling-") as folder:
        measuring = measure_cases(
            cases, on_cpu=arguments.tiny, folder=Path(folder), deadline=deadline
        )
        with contextlib.closing(measuring):
            for measured in measuring:
                _say(measured_line(measured))
                results.append(measured)
    _say("", *summary(results))
    if arguments.benchmark is not None:
        prefix = "scale-tiny" if arguments.tiny else "scale"
        write_benchmark(arguments.benchmark, rows_of(results, prefix=prefix))
    return 0 if all(result.is_good or result.is_skipped for result in results) else 1


def summary(results: Sequence[Measured]) -> list[str]:
    """Return the last lines: what was not run, and what went wrong."""
    skipped = [result.case.name for result in results if result.is_skipped]
    bad = [r.case.name for r in results if not r.is_good and not r.is_skipped]
    lines = [f"{len(results) - len(skipped) - len(bad)} of {len(results)} cases were measured"]
    if skipped:
        lines.append(f"not measured, for want of time: {', '.join(skipped)}")
    if bad:
        lines.append(f"failed, or with another loss: {', '.join(bad)}")
    return lines


def _choose(arguments: argparse.Namespace) -> list[ScalingCase]:
    """Return the cases of the processes that there are, or are asked for.

    Raises:
        ConfigError: there are fewer GPUs.
    """
    needs_gpus = not (arguments.tiny or arguments.dry_run)
    gpus = count_gpus() if needs_gpus else max(ORDER)
    processes = arguments.processes or gpus
    if processes > gpus or not gpus:
        raise ConfigError(
            f"--processes {max(1, processes)}: there are {gpus} GPUs. Use --dry-run to see the "
            "cases, or --tiny to run them with small models on CPU."
        )
    return _named(scaling_cases(processes, is_tiny=arguments.tiny), arguments.cases)


def _named(cases: Sequence[ScalingCase], names: Sequence[str]) -> list[ScalingCase]:
    """Return the cases of these names, and what they are compared with; all if there are none.

    Raises:
        ConfigError: there is no such case.
    """
    if unknown := set(names) - {case.name for case in cases}:
        raise ConfigError(
            f"--cases {', '.join(sorted(unknown))}: there is no such case. Use some of "
            f"{', '.join(case.name for case in cases)}."
        )
    wanted = {case.name for case in cases if case.name in names or not names}
    wanted |= {case.baseline for case in cases if case.name in wanted and case.baseline}
    return [case for case in cases if case.name in wanted]


def count_gpus() -> int:
    """Return how many GPUs are visible."""
    import torch  # late: --help and --dry-run need none

    return torch.cuda.device_count()


def _say(*lines: str) -> None:
    for text in lines:
        print(text, flush=True)  # noqa: T201


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench_scaling",
        description="Measure training on 1, 2, 4 and 8 GPUs, those that there are.",
    )
    parser.add_argument(
        "--processes",
        type=int,
        choices=sorted(ORDER),
        help="at most (default: as many as there are GPUs)",
    )
    parser.add_argument(
        "--cases",
        type=lambda text: text.split(","),
        default=[],
        metavar="NAME[,NAME]",
        help="only these, by the names of the table, and what they are compared with",
    )
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help=f"time for all (default: {MINUTES:g})"
    )
    parser.add_argument("--dry-run", action="store_true", help="list the cases and their plan")
    parser.add_argument(
        "--tiny", action="store_true", help="small models in float32, gloo processes on CPU"
    )
    parser.add_argument("--benchmark", type=Path, metavar="FILE", help="write the numbers there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
