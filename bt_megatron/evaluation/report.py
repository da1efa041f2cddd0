# SPDX-License-Identifier: Apache-2.0
"""Measurements as a table, as JSON and as flat metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from bt_megatron.errors import DataError
from bt_megatron.evaluation.measurement import Measurement
from bt_megatron.observe.atomic_file import write_atomically

RESULTS, TABLE, PLOT = "results.json", "table.md", "evaluation.png"
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class TableRow:
    """One number, as it is shown."""

    name: str
    metric: str
    value: str
    error: str
    """Standard error; empty where there is none."""
    over: str
    """What it was measured on."""


HEADER = TableRow("evaluation", "metric", "value", "± std. error", "measured on")


def table_rows(measurements: Sequence[Measurement]) -> list[TableRow]:
    """Return the rows of the table, one a metric; name and origin stand in the first of each."""
    rows = []
    for measurement in measurements:
        errors = measurement.detail.get("standard_error", {})
        name, over = measurement.name, _measured_on(measurement.detail)
        for metric, value in measurement.metrics.items():
            error = errors.get(metric)
            shown = "" if error is None else _number(error)
            rows.append(TableRow(name, metric, _number(value), shown, over))
            name = over = ""
    return rows


def _measured_on(detail: Mapping[str, Any]) -> str:
    if "of" in detail:
        return f"{detail['samples']:,} of {detail['of']:,} documents ({detail['split']})"
    if "documents" in detail:
        return (
            f"{detail['tokens']:,} tokens, {detail['text_bytes']:,} bytes of "
            f"{detail['documents']:,} documents"
        )
    if "pieces" in detail:
        return f"{detail['pieces']:,} pieces of {detail['context_length']:,} tokens"
    return (
        f"{detail['samples_per_depth']} needles at each of {len(detail['depths'])} depths, "
        f"{detail['prompt_tokens']:,} tokens"
    )


def _number(value: float) -> str:
    """Return four digits behind the point, or an exponent where these say nothing."""
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e5 or value == 0 else f"{value:.3e}"


def markdown(rows: Sequence[TableRow]) -> str:
    """Return the table in Markdown."""
    lines = [
        f"| {row.name} | {row.metric} | {row.value} | {row.error} | {row.over} |"
        for row in (HEADER, *rows)
    ]
    return "\n".join([lines[0], "|---|---|---:|---:|---|", *lines[1:]]) + "\n"


def flat_metrics(measurements: Sequence[Measurement]) -> dict[str, float]:
    """Return all numbers by group/task/metric."""
    return {
        f"{measurement.name}/{metric}": value
        for measurement in measurements
        for metric, value in measurement.metrics.items()
    }


def write_report(
    folder: Path, measurements: Sequence[Measurement], *, identity: Mapping[str, Any]
) -> list[Path]:
    """Write results.json and table.md.

    Args:
        folder: of the evaluation.
        measurements: in the order of the table.
        identity: which model, and how it was run.

    Returns:
        The files.

    Raises:
        DataError: they cannot be written.
    """
    results = {
        "schema": SCHEMA,
        **identity,
        "metrics": flat_metrics(measurements),
        "measurements": [asdict(measurement) for measurement in measurements],
    }
    contents = {
        folder / RESULTS: orjson.dumps(results, option=orjson.OPT_INDENT_2) + b"\n",
        folder / TABLE: markdown(table_rows(measurements)).encode(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in contents.items():
            write_atomically(path, content)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror}). Pass --out.") from error
    return list(contents)
