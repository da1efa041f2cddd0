# SPDX-License-Identifier: Apache-2.0
"""The timeline of a run: one row an attempt, one colour for each thing that time went to."""

from pathlib import Path
from typing import Any

from bt_megatron.errors import DataError
from bt_megatron.observe.goodput import KINDS, Goodput, Kind, Span

COLOURS: dict[Kind, str] = {
    "start": "#f0b429",
    "training": "#2e8b57",
    "repeated": "#c0392b",
    "checkpoint": "#1f4e9c",
    "evaluation": "#8e7cc3",
    "down": "#d0d0d0",
}
UNITS = ((3 * 86400.0, 86400.0, "days"), (3 * 3600.0, 3600.0, "hours"), (180.0, 60.0, "minutes"))
"""From this many seconds on, in units of this many seconds."""
WIDTH_INCHES, ROW_INCHES, FRAME_INCHES = 9.0, 0.35, 1.6
MOST_ROWS = 40
"""More attempts share rows, so that the figure stays readable."""
DOTS_PER_INCH = 120


def draw_timeline(goodput: Goodput, output: Path, *, title: str) -> None:
    """Draw where the time went into a PNG file.

    Raises:
        DataError: the file cannot be written.
    """
    # Not pyplot: it keeps global state and may open a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = min(MOST_ROWS, len(goodput.attempts))
    size = (WIDTH_INCHES, FRAME_INCHES + ROW_INCHES * max(rows, 2))
    figure = Figure(figsize=size, dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    begin = goodput.attempts[0].spans[0].begin
    unit_s, unit = _unit(goodput.total_s)
    for index, attempt in enumerate(goodput.attempts):
        following = goodput.down[index : index + 1]
        for span in (*attempt.spans, *following):
            _draw(axes, span, row=index % rows, begin=begin, unit_s=unit_s)
    _decorate(axes, goodput, rows=rows, unit=unit, title=title)
    try:
        figure.savefig(output, format="png")
    except OSError as error:
        raise DataError(
            f"{output}: cannot be written ({error}). Pass --out another file."
        ) from error


def _unit(seconds: float) -> tuple[float, str]:
    for least, unit_s, unit in UNITS:
        if seconds >= least:
            return unit_s, unit
    return 1.0, "seconds"


def _draw(axes: Any, span: Span, *, row: int, begin: float, unit_s: float) -> None:
    start, width = (span.begin - begin) / unit_s, span.seconds / unit_s
    height = 0.2 if span.kind == "down" else 0.7
    axes.barh(row, width, left=start, height=height, color=COLOURS[span.kind])


def _decorate(axes: Any, goodput: Goodput, *, rows: int, unit: str, title: str) -> None:
    from matplotlib.patches import Patch

    seconds, total = goodput.seconds, goodput.total_s
    handles = [
        Patch(color=COLOURS[kind], label=f"{kind} {seconds[kind] / total:.1%}")
        for kind in KINDS
        if seconds[kind]
    ]
    axes.legend(handles=handles, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axes.set_title(f"{title}: goodput {goodput.fraction:.1%}", fontsize=13)
    axes.set_xlabel(unit, fontsize=11)
    axes.set_ylabel("attempt", fontsize=11)
    axes.set_yticks(range(rows), [str(number) for number in range(1, rows + 1)])
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
