# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.sweep_report SWEEP.yaml ...`: what sweeps gave, from MLflow.

A table and plots of loss, training throughput and bytes of keys and values, as report.md,
report.png and report.json in <runs_dir>/<name of the sweep>, and as files of the sweep's run in
MLflow. Runs that are still missing are named.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bt_megatron.errors import BtError, DataError
from bt_megatron.observe.atomic_file import write_atomically
from bt_megatron.observe.mlflow_forwarder import describe, without_password
from bt_megatron.observe.mlflow_run import KEY_TAG, PARENT_KEY, connect
from bt_megatron.observe.mlflow_tags import MLFLOW_PARENT
from bt_megatron.observe.tracking_state import resolve_uri
from slurm.sweep import Sweep, load_sweep
from tools.benchmark_file import Row, write_benchmark
from tools.sweep_plot import draw_report

METRICS = {
    "validation_loss": "nats per token",
    "training_loss": "nats per token",
    "training_tokens_per_s": "tokens/s",
    "kv_bytes_per_sequence": "bytes",
    "parameters": "",
}
"""What is reported of a case, with its unit."""
LAST_LOSSES = 10
"""The training loss is the mean of this many logged steps at the end: one step is noise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What MLflow has of one case."""

    case: str
    status: str
    """Of the MLflow run; FINISHED if it has taken all steps."""
    step: int
    """Steps taken."""
    values: dict[str, float]
    """By the names of `METRICS`."""
    losses: tuple[tuple[int, float], ...]
    """Step and validation loss of each evaluation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What was written of a sweep."""

    text: Path
    figures: Path
    picture: Path
    rows: tuple[Row, ...]
    """What is in `figures`."""
    missing: tuple[str, ...] = ()
    """Cases that are not complete."""


class Reader:
    """Reads the runs of a sweep from MLflow."""

    def __init__(self, sweep: Sweep) -> None:
        """Connect.

        Raises:
            DataError: MLflow knows no run of this sweep.
        """
        self._client = connect(resolve_uri(sweep.tracking, sweep.cases[0].folder))
        found = self._client.get_experiment_by_name(sweep.tracking.experiment)
        self._experiments = [found.experiment_id] if found else []
        parents = self._search(f"tags.`{KEY_TAG}` = '{PARENT_KEY}{sweep.name}'")
        if not parents:
            raise DataError(
                f"{sweep.name}: MLflow has no run of this sweep. Start it: python -m slurm sweep"
            )
        self.parent_id: str = parents[0].info.run_id
        children = self._search(f"tags.`{MLFLOW_PARENT}` = '{self.parent_id}'")
        self._children = {run.info.run_name: run for run in children}  # the newest of a name

    def result(self, case: str, run_name: str) -> Result | None:
        """Return what there is of a case; None if it has not begun."""
        run = self._children.get(run_name)
        if run is None:
            return None
        data, losses = run.data, self._history(run, "validation/loss")
        speeds = [value for _, value in self._history(run, "perf/tokens_per_s")]
        training = [value for _, value in self._history(run, "train/loss")]
        values: dict[str, float | None] = {
            "validation_loss": losses[-1][1] if losses else None,
            "training_loss": statistics.fmean(training[-LAST_LOSSES:]) if training else None,
            "training_tokens_per_s": statistics.median(speeds) if speeds else None,
            "kv_bytes_per_sequence": _number(data.params.get("plan.kv_cache.per_sequence")),
            "parameters": _number(data.params.get("plan.parameters.total")),
        }
        return Result(
            case=case,
            status=run.info.status,
            step=max((step for step, _ in self._history(run, "train/loss")), default=0),
            values={name: value for name, value in values.items() if value is not None},
            losses=tuple(losses),
        )

    def attach(self, files: Sequence[Path]) -> None:
        """Upload the report to the sweep's own run."""
        for file in files:
            self._client.log_artifact(self.parent_id, str(file))

    def finish(self) -> None:
        """Let the sweep's own run be finished."""
        self._client.set_terminated(self.parent_id, "FINISHED")

    def _search(self, filter_string: str) -> list[Any]:
        found = self._client.search_runs(self._experiments, filter_string, max_results=1000)
        return sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))

    def _history(self, run: Any, name: str) -> list[tuple[int, float]]:
        """Return step and newest value of a metric, in the order of steps."""
        found = self._client.get_metric_history(run.info.run_id, name)
        newest = {m.step: m.value for m in sorted(found, key=lambda m: (m.step, m.timestamp))}
        return sorted(newest.items())


def write_report(sweep: Sweep, folder: Path) -> Report:
    """Write the report of a sweep into a folder and attach it to the sweep's run.

    Raises:
        BtError: MLflow does not answer, or has nothing of the sweep.
    """
    uri = without_password(resolve_uri(sweep.tracking, sweep.cases[0].folder))
    try:
        reader = Reader(sweep)
        found = [reader.result(case.name, case.config.name) for case in sweep.cases]
        results = [result for result in found if result is not None]
        report = _write(sweep, results, folder)
        reader.attach([report.text, report.figures, report.picture])
        finished = {result.case for result in results if result.status == "FINISHED"}
        missing = tuple(case.name for case in sweep.cases if case.name not in finished)
        if not missing:
            reader.finish()
    except BtError:
        raise
    except Exception as error:  # whatever MLflow raises becomes one line for the user
        raise BtError(
            f"{uri}: MLflow gave no report ({describe(error)}). Start the server, then run the "
            "same command again."
        ) from error
    return replace(report, missing=missing)


def _write(sweep: Sweep, results: Sequence[Result], folder: Path) -> Report:
    folder.mkdir(parents=True, exist_ok=True)
    report = Report(
        text=folder / "report.md",
        figures=folder / "report.json",
        picture=folder / "report.png",
        rows=tuple(rows_of(sweep, results)),
    )
    write_atomically(report.text, markdown(sweep, results).encode())
    write_benchmark(report.figures, report.rows)
    draw_report(sweep, {result.case: result for result in results}, report.picture)
    return report


def rows_of(sweep: Sweep, results: Sequence[Result]) -> list[Row]:
    """Return every figure in the form of benchmark files."""
    return [
        Row(
            case=f"sweep/{sweep.name}/{result.case}",
            metric=metric,
            value=result.values[metric],
            unit=unit,
            detail={"status": result.status, "step": result.step},
        )
        for result in results
        for metric, unit in METRICS.items()
        if metric in result.values
    ]


def markdown(sweep: Sweep, results: Sequence[Result]) -> str:
    """Write the table of a sweep."""
    head = [sweep.axis, "validation loss", "training loss", "tokens/s", "KV bytes", "parameters"]
    lines = [f"# {sweep.title}", "", f"| {' | '.join(head)} | state |", "|---" * 7 + "|"]
    by_case = {result.case: result for result in results}
    for case in sweep.cases:
        result = by_case.get(case.name)
        if result is None:
            lines.append(f"| {case.name} | | | | | | not begun |")
            continue
        state = "complete" if result.status == "FINISHED" else f"at step {result.step}"
        cells = [
            _cell(result, "validation_loss", ".4f"),
            _cell(result, "training_loss", ".4f"),
            *(_cell(result, name, ",.0f") for name in list(METRICS)[2:]),
        ]
        lines.append(f"| {case.name} | {' | '.join(cells)} | {state} |")
    if sweep.paper:
        lines += ["", f"The paper: {sweep.paper}"]
    return "\n".join([*lines, "", "![Loss, throughput and KV bytes](report.png)", ""])


def _cell(result: Result, name: str, form: str) -> str:
    return format(result.values[name], form) if name in result.values else "n/a"


def _number(text: str | None) -> float | None:
    return None if text is None else float(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.sweep_report", description="Report what sweeps gave, from MLflow."
    )
    parser.add_argument("sweeps", nargs="+", metavar="SWEEP", help="YAML file as in configs/sweep")
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="as the sweeps were run with",
    )
    parser.add_argument("--benchmark", type=Path, metavar="FILE", help="write all figures there")
    arguments = parser.parse_args(argv)
    rows: list[Row] = []
    try:
        for file in arguments.sweeps:
            sweep = load_sweep(file, arguments.settings)
            report = write_report(sweep, sweep.folder)
            rows += report.rows
            _tell(report)
        if arguments.benchmark:
            write_benchmark(arguments.benchmark, rows)
    except BtError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


def _tell(report: Report) -> None:
    print(report.text.read_text())  # noqa: T201
    if report.missing:
        print(f"not complete: {', '.join(report.missing)}")  # noqa: T201
    print(report.text)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
