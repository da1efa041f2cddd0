# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.evaluate FOLDER`: what an exported model is worth.

    zero-shot    lm-eval's tasks on real data, without a network (tools/fetch_tasks.py)
    held-out     bits per byte of documents kept out of training, by subset
    positions    loss by place in the block and along the context
    needle       needle in a haystack, by depth

Each result is kept when it is there. The command may be interrupted (Ctrl-C, SIGTERM, SIGUSR1)
and given again; what was measured with the same model and settings is not measured twice.
docs/evaluation.md says how each number is defined.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import orjson
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from bt_megatron.checkpoint.weights import SOURCE_FILE
from bt_megatron.config.load import load_run
from bt_megatron.errors import BtError, ConfigError
from bt_megatron.evaluation.exported_model import DTYPES, ExportedModel, read_tokenizer
from bt_megatron.evaluation.measurement import Measurement, MeasurementFolder, fingerprint
from bt_megatron.evaluation.plot import plot_evaluation
from bt_megatron.evaluation.report import (
    HEADER,
    PLOT,
    flat_metrics,
    table_rows,
    write_report,
)
from bt_megatron.evaluation.tracking import destination, run_of, send
from bt_megatron.evaluation.zero_shot import TASKS
from bt_megatron.versions import read_versions
from tools.benchmark_file import Row, write_benchmark
from tools.evaluation_parts import (
    Part,
    held_out_parts,
    needle_parts,
    open_held_out,
    position_part,
    zero_shot_parts,
)

GROUPS = ("zero-shot", "held-out", "positions", "needle")
INTERRUPTED = 75
"""As training: given again, the command goes on (sysexits: EX_TEMPFAIL)."""
UNITS = {"bits_per_byte": "bits/byte", "perplexity": "1", "acc": "1", "acc_norm": "1"}


def plan_parts(folder: Path, model: ExportedModel, arguments: argparse.Namespace) -> list[Part]:
    """Return what the arguments ask for.

    Raises:
        BtError: something that a part needs is not there.
    """
    tokenizer = read_tokenizer(folder)
    parts = []
    if "zero-shot" in arguments.only:
        parts += zero_shot_parts(
            model,
            tokenizer,
            data=arguments.tasks_data,
            tasks=arguments.tasks,
            limit=arguments.limit,
        )
    if set(arguments.only) == {"zero-shot"}:
        return parts
    run = run_of(folder)
    config = None if run is None else load_run([str(run.config)], []).config.data
    data = arguments.held_out
    if data is None and config is not None:
        if config.path is None:
            raise ConfigError(
                f"{folder}: its run mixes {len(config.mixture)} data folders "
                f"({', '.join(config.mixture)}). Pass --held-out with one of them."
            )
        data = Path(config.path)
    if data is None or (config is None and not arguments.all_documents):
        raise ConfigError(
            f"{folder}: not in the folder of a run, so its held-out documents are not known. Pass "
            "--held-out DATA_FOLDER --all-documents, or --only zero-shot."
        )
    text = open_held_out(
        data,
        None if arguments.all_documents else config,
        sources=arguments.source,
        tokenizer=folder / "tokenizer.json",
    )
    if "held-out" in arguments.only:
        parts += held_out_parts(model, text, max_tokens=arguments.max_tokens)
    if "positions" in arguments.only:
        length = arguments.context or model.max_length
        parts.append(position_part(model, text, context_length=length, pieces=arguments.pieces))
    if "needle" in arguments.only:
        parts += needle_parts(model, tokenizer, text, samples=arguments.needles)
    return parts


def measure_all(parts: Sequence[Part], kept: MeasurementFolder) -> list[Measurement]:
    """Make those measurements that are not kept yet, with progress on standard error."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    measurements = []
    with Progress(*columns, console=Console(stderr=True)) as progress:
        for part in parts:
            found = kept.load(part.name, part.settings)
            if found is None:
                task = progress.add_task(part.name, total=None)
                found = part.measure(on_progress=_reporter(progress, task))
                kept.save(found, part.settings)
                progress.remove_task(task)
                progress.console.print(f"{part.name}: {_brief(found)}")
            else:
                progress.console.print(f"{part.name}: measured before")
            measurements.append(found)
    return measurements


def _reporter(progress: Progress, task: Any) -> Callable[[int, int], None]:
    def report(done: int, total: int) -> None:
        progress.update(task, completed=done, total=total)

    return report


def _brief(measurement: Measurement) -> str:
    name, value = next(iter(measurement.metrics.items()))
    return f"{name} {value:.4f}"


def evaluate(arguments: argparse.Namespace) -> None:
    """Measure, report, and send to MLflow.

    Raises:
        BtError: with what to do about it.
    """
    folder = arguments.folder
    model = ExportedModel(
        folder,
        dtype=arguments.dtype,
        left_padding=arguments.left_padding,
        batch_tokens=arguments.batch_tokens,
    )
    versions = read_versions()
    identity: dict[str, Any] = {
        "model": str(folder),
        "fingerprint": fingerprint(folder),
        "dtype": model.dtype,
        "device": model.device,
        "left_padding": model.left_padding,
    }
    key = {name: value for name, value in identity.items() if name != "model"}
    out = arguments.out or folder.with_name(f"{folder.name}-evaluation")
    parts = plan_parts(folder, model, arguments)
    measurements = measure_all(parts, MeasurementFolder(out, identity=key))
    source = _read_source(folder)
    whole = {**identity, "source": source, "versions": versions}
    files = write_report(out, measurements, identity=whole)
    plot_evaluation(measurements, out / PLOT, title=f"{folder}, step {source.get('step', 'n/a')}")
    _show(measurements)
    print(f"{out}: {', '.join(path.name for path in files)}, {PLOT}")  # noqa: T201
    if arguments.benchmark is not None:
        write_benchmark(arguments.benchmark, _benchmark_rows(parts, measurements, identity))
    if not arguments.no_tracking:
        _track(
            arguments,
            measurements,
            [*files, out / PLOT],
            source=source,
            key=identity["fingerprint"],
        )


def _track(
    arguments: argparse.Namespace,
    measurements: Sequence[Measurement],
    files: Sequence[Path],
    *,
    source: Mapping[str, Any],
    key: str,
) -> None:
    run = run_of(arguments.folder)
    uri, experiment = arguments.tracking_uri, arguments.experiment
    place = destination(run, tracking_uri=uri, experiment=experiment)
    if place is None:
        return
    metrics = flat_metrics(measurements)
    name = str(source.get("run") or arguments.folder.name)
    send(place, metrics, files, step=int(source.get("step") or 0), name=name, key=key)
    print(f"MLflow has {len(metrics)} metrics of it")  # noqa: T201


def _read_source(folder: Path) -> dict[str, Any]:
    """Return what the export says of where the weights come from; nothing if it says nothing."""
    path = folder / SOURCE_FILE
    if not path.is_file():
        return {}
    try:
        return dict(orjson.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}). Export the model again.") from error


def _benchmark_rows(
    parts: Sequence[Part], measurements: Sequence[Measurement], identity: Mapping[str, Any]
) -> list[Row]:
    return [
        Row(
            case=f"evaluate/{measurement.name}",
            metric=metric,
            value=value,
            unit=UNITS.get(metric, "1" if metric == "accuracy" else "nats/token"),
            detail={**measurement.detail, **part.settings, **identity},
        )
        for part, measurement in zip(parts, measurements, strict=True)
        for metric, value in measurement.metrics.items()
    ]


def _show(measurements: Sequence[Measurement]) -> None:
    table = Table()
    table.add_column(HEADER.name, no_wrap=True)
    table.add_column(HEADER.metric)
    table.add_column(HEADER.value, justify="right")
    table.add_column(HEADER.error, justify="right")
    table.add_column(HEADER.over, overflow="fold")
    for row in table_rows(measurements):
        table.add_row(row.name, row.metric, row.value, row.error, row.over)
    Console().print(table)


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = _parser().parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _stop)
    try:
        evaluate(arguments)
    except BtError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; the same command goes on after the last result", file=sys.stderr)  # noqa: T201
        return INTERRUPTED
    return os.EX_OK


def _choices(known: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        chosen = text.split(",")
        unknown = [name for name in chosen if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"'{unknown[0]}' is none of {', '.join(known)}")
        return [name for name in known if name in chosen]

    return parse


def _positive(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 1 on")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.evaluate", description="Evaluate an exported model."
    )
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="what tools.export made")
    add("--out", type=Path, help="where results are kept (default: FOLDER-evaluation)")
    add(
        "--only",
        type=_choices(GROUPS),
        default=list(GROUPS),
        metavar="PART[,PART]",
        help=f"some of {', '.join(GROUPS)} (default: all)",
    )
    tasks = parser.add_argument_group("zero-shot").add_argument
    tasks(
        "--tasks",
        type=_choices(tuple(TASKS)),
        default=list(TASKS),
        metavar="TASK[,TASK]",
        help=f"some of {', '.join(TASKS)} (default: all)",
    )
    tasks(
        "--tasks-data",
        type=Path,
        default=Path("data/tasks"),
        metavar="DIR",
        help="folder of tools.fetch_tasks (default: data/tasks)",
    )
    tasks("--limit", type=_positive, help="documents of each task (default: all)")
    text = parser.add_argument_group("held-out, positions, needle").add_argument
    text("--held-out", type=Path, metavar="DIR", help="data folder (default: that of the run)")
    text("--all-documents", action="store_true", help="the run read none of that folder")
    text(
        "--source",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="texts that shards were made of, for the subset of each document",
    )
    text("--max-tokens", type=_positive, default=1_000_000, help="of each subset, about")
    text("--context", type=_positive, help="tokens of a long document (default: as in training)")
    text("--pieces", type=_positive, default=200, help="of long documents (default: 200)")
    text("--needles", type=_positive, default=20, help="at each depth (default: 20)")
    how = parser.add_argument_group("how").add_argument
    how("--dtype", choices=tuple(DTYPES), help="default: bf16 on a GPU, fp32 on a CPU")
    how("--left-padding", type=int, help="pads in front of texts (default: as the folder says)")
    how("--batch-tokens", type=_positive, help="tokens of a batch (default: by device)")
    result = parser.add_argument_group("results").add_argument
    result("--tracking-uri", help="MLflow (default: where the run went that trained the model)")
    result("--experiment", help="MLflow experiment (default: that of the run)")
    result("--no-tracking", action="store_true", help="send nothing to MLflow")
    result("--benchmark", type=Path, metavar="FILE", help="write the numbers there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
