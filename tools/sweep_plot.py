# SPDX-License-Identifier: Apache-2.0
"""The figures of a sweep: loss while training, and loss, throughput and KV bytes by case."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bt_megatron.errors import DataError
from slurm.sweep import Sweep

if TYPE_CHECKING:
    from tools.sweep_report import Result

SIZE_INCHES = (11.0, 7.5)
DOTS_PER_INCH = 110
PANELS = {
    "validation_loss": "validation loss (nats per token)",
    "training_tokens_per_s": "training tokens/s",
    "kv_bytes_per_sequence": "KV bytes per sequence",
}


def draw_report(sweep: Sweep, results: Mapping[str, "Result"], output: Path) -> None:
    """Draw a sweep into a PNG file.

    Raises:
        DataError: the file cannot be written.
    """
    # Not pyplot: it keeps global state and may open a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    curves, *panels = figure.subplots(2, 2).flat
    _draw_curves(curves, sweep, results)
    for axes, (metric, label) in zip(panels, PANELS.items(), strict=True):
        _draw_panel(axes, sweep, results, metric=metric, label=label)
    figure.suptitle(sweep.title, fontsize=14)
    try:
        figure.savefig(output, format="png")
    except OSError as error:
        raise DataError(f"{output}: cannot be written ({error}). Pass another --out.") from error


def _draw_curves(axes: Any, sweep: Sweep, results: Mapping[str, "Result"]) -> None:
    for case in sweep.cases:
        losses = results[case.name].losses if case.name in results else ()
        if losses:
            axes.plot(*zip(*losses, strict=True), marker=".", label=case.name)
            axes.legend(fontsize=9)
    axes.set_xlabel("step")
    axes.set_ylabel(PANELS["validation_loss"])
    axes.grid(alpha=0.3)


def _draw_panel(
    axes: Any, sweep: Sweep, results: Mapping[str, "Result"], *, metric: str, label: str
) -> None:
    shown = [
        (index, results[case.name].values[metric])
        for index, case in enumerate(sweep.cases)
        if case.name in results and metric in results[case.name].values
    ]
    if shown:
        places, values = zip(*shown, strict=True)
        axes.plot(places, values, marker="o", color="#1f4e9c")
        if metric == "kv_bytes_per_sequence" and max(values) > 4 * min(values):
            axes.set_yscale("log")
    axes.set_xticks(range(len(sweep.cases)), [case.name for case in sweep.cases])
    axes.set_xlabel(sweep.axis)
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
