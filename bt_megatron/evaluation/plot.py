# SPDX-License-Identifier: Apache-2.0
"""One figure of an evaluation: a panel for each kind of measurement there is."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bt_megatron.errors import DataError
from bt_megatron.evaluation.measurement import Measurement

PANEL_INCHES = (6.0, 4.0)
DOTS_PER_INCH = 110


def plot_evaluation(measurements: Sequence[Measurement], output: Path, *, title: str) -> None:
    """Draw a PNG file.

    Args:
        measurements: one or more.
        output: the file.
        title: over all panels.

    Raises:
        DataError: the file cannot be written.
    """
    # Not pyplot: it keeps global state and may open a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [
        (draw, chosen)
        for group, drawings in PANELS.items()
        if (chosen := [m for m in measurements if m.name.split("/")[0] == group])
        for draw in drawings
    ]
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    size = (columns * PANEL_INCHES[0], rows * PANEL_INCHES[1])
    figure = Figure(figsize=size, dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    for number, (draw, chosen) in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, number)
        draw(axes, chosen)
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    try:
        figure.savefig(output, format="png")
    except OSError as error:
        raise DataError(f"{output}: cannot be written ({error}). Pass --out.") from error


def _accuracies(axes: Any, chosen: Sequence[Measurement]) -> None:
    names = [measurement.name.split("/")[1] for measurement in chosen]
    values = [measurement.metrics["acc"] for measurement in chosen]
    errors = [measurement.detail["standard_error"].get("acc", 0.0) for measurement in chosen]
    axes.barh(names, values, xerr=errors, color="C0")
    axes.invert_yaxis()
    axes.set(title="zero-shot accuracy, with standard error", xlim=(0, 1))


def _bits(axes: Any, chosen: Sequence[Measurement]) -> None:
    known = [measurement for measurement in chosen if "bits_per_byte" in measurement.metrics]
    names = [measurement.name.split("/", 1)[1] for measurement in known]
    axes.barh(names, [measurement.metrics["bits_per_byte"] for measurement in known], color="C1")
    axes.invert_yaxis()
    axes.set(title="bits per byte of held-out text")


def _along_context(axes: Any, chosen: Sequence[Measurement]) -> None:
    curve = chosen[0].detail["along_context"]
    edges = [curve[0]["begin"], *(part["end"] for part in curve)]
    axes.stairs([part["loss"] for part in curve], edges, baseline=None, color="C2", linewidth=2)
    axes.set_xscale("log", base=2)
    axes.set(title="loss along the context", xlabel="token", ylabel="nats per token")


def _in_block(axes: Any, chosen: Sequence[Measurement]) -> None:
    metrics = chosen[0].metrics
    losses = [metrics[name] for name in sorted(metrics) if name.startswith("in_block_")]
    axes.bar(range(len(losses)), losses, color="C2")
    if losses:
        axes.set_ylim(bottom=0.9 * min(losses))
    axes.set(title="loss inside the block", xlabel="place in the block", ylabel="nats per token")


def _needle(axes: Any, chosen: Sequence[Measurement]) -> None:
    for index, measurement in enumerate(chosen):
        detail, name = measurement.detail, measurement.name.split("/")[1]
        gain = [
            without - loss
            for without, loss in zip(
                detail["answer_loss_without"], detail["answer_loss"], strict=True
            )
        ]
        axes.plot(detail["depths"], gain, marker="o", color=f"C{index}", label=f"{name}: gain")
    other = axes.twinx()
    for index, measurement in enumerate(chosen):
        detail, name = measurement.detail, measurement.name.split("/")[1]
        style = {"linestyle": "--", "marker": "x", "color": f"C{index}"}
        other.plot(detail["depths"], detail["accuracy"], label=f"{name}: accuracy", **style)
    other.set(ylim=(-0.02, 1.02), ylabel="accuracy (dashed)")
    axes.axhline(0.0, color="0.6", linewidth=0.8)
    axes.legend(loc="upper left", fontsize=9)
    axes.set(title="needle in a haystack", xlabel="depth, %")
    axes.set_ylabel("nats per token gained by the needle")


Draw = Callable[[Any, Sequence[Measurement]], None]
PANELS: dict[str, tuple[Draw, ...]] = {
    "zero-shot": (_accuracies,),
    "held-out": (_bits,),
    "positions": (_along_context, _in_block),
    "needle": (_needle,),
}
