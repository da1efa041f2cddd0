# SPDX-License-Identifier: Apache-2.0
"""The loss curve of one run, or of several on top of each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from bt_megatron.errors import DataError
from bt_megatron.observe.jsonl import read_records
from bt_megatron.observe.run_folder import RunFolder

SMOOTHING_PART = 0.02
"""The smoothed line averages over this part of the run."""
FIGURE_INCHES = (9.0, 5.0)
DOTS_PER_INCH = 120
BASELINE_STYLES = {"unigram": ":", "bigram": "--"}


@dataclass(frozen=True, slots=True)
class LossCurve:
    """What is drawn of one run."""

    name: str
    steps: NDArray[np.float64]
    """[logged steps], growing."""
    losses: NDArray[np.float64]
    """[logged steps] training loss in nats per token; NaN where it was not finite."""
    validation: tuple[tuple[int, float], ...]
    """Step and loss of each evaluation."""
    baselines: Mapping[str, float]
    """Losses of n-gram models on the same validation targets, by name."""


def read_curve(folder: RunFolder) -> LossCurve:
    """Read the losses that a run has logged.

    Raises:
        DataError: there is no loss, or a file of the run is damaged.
    """
    records = read_records(folder.metrics)
    train = [(r["step"], _number(r["train/loss"])) for r in records if "train/loss" in r]
    if not train:
        raise DataError(
            f"{folder.metrics}: it has no training loss. Train at least to the first logged step "
            "(log.interval_steps)."
        )
    steps, losses = np.array(train, dtype=np.float64).T
    validation = tuple(
        (r["step"], _number(r["validation/loss"])) for r in records if "validation/loss" in r
    )
    return LossCurve(folder.path.name, steps, losses, validation, _read_baselines(folder))


def smooth(steps: NDArray[np.float64], losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average over neighbours on both sides, so that the line does not lag behind.

    The mean of all losses with weight exp(-(distance in steps) / width), width =
    `SMOOTHING_PART` of the run; losses that are not finite do not count.

    Args:
        steps: [n], growing.
        losses: [n].

    Returns:
        [n]; NaN everywhere if no loss is finite.
    """
    width = max(1.0, SMOOTHING_PART * float(steps[-1] - steps[0]))
    decays = np.exp(-np.diff(steps) / width)  # [n - 1]
    finite = np.isfinite(losses)
    values = np.stack([np.where(finite, losses, 0.0), finite.astype(np.float64)])  # [2, n]
    forward = _decaying_sum(values, decays)
    backward = _decaying_sum(values[:, ::-1], decays[::-1])[:, ::-1]
    total, weight = forward + backward - values  # each loss itself is in both
    with np.errstate(invalid="ignore", divide="ignore"):
        smoothed: NDArray[np.float64] = total / weight
    return smoothed


def _decaying_sum(values: NDArray[np.float64], decays: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return [2, n] sums of what came before, each decayed on the way from one to the next."""
    sums = values.copy()
    for i, decay in enumerate(decays, start=1):
        sums[:, i] += decay * sums[:, i - 1]
    return sums


def plot_loss(folders: Sequence[RunFolder], output: Path, *, title: str | None = None) -> None:
    """Draw the loss curves of runs into a PNG file.

    Args:
        folders: of the runs.
        output: the file.
        title: none: the name of the run.

    Raises:
        DataError: a run has no losses, or the file cannot be written.
    """
    # Not pyplot: it keeps global state and may open a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves = [read_curve(folder) for folder in folders]
    figure = Figure(figsize=FIGURE_INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for index, curve in enumerate(curves):
        _draw(axes, curve, colour=f"C{index}", prefix=f"{curve.name}: " if len(curves) > 1 else "")
    _draw_baselines(axes, curves)
    _decorate(axes, curves, title or f"Loss of {', '.join(curve.name for curve in curves)}")
    try:
        figure.savefig(output, format="png")
    except OSError as error:
        raise DataError(
            f"{output}: cannot be written ({error}). Pass --out another file."
        ) from error


def _draw(axes: Any, curve: LossCurve, *, colour: str, prefix: str) -> None:
    """Draw one run: every logged loss faintly, the smoothed line, the evaluations."""
    axes.plot(curve.steps, curve.losses, color=colour, alpha=0.35, linewidth=0.8)
    smoothed = smooth(curve.steps, curve.losses)
    axes.plot(curve.steps, smoothed, color=colour, linewidth=1.8, label=f"{prefix}training")
    if curve.validation:
        steps, losses = zip(*curve.validation, strict=True)
        style: dict[str, Any] = {"marker": "o", "markersize": 5, "markeredgecolor": "black"}
        last = f"{prefix}validation (last {losses[-1]:.3f})"
        axes.plot(steps, losses, color=colour, linestyle="none", label=last, zorder=3, **style)


def _draw_baselines(axes: Any, curves: Sequence[LossCurve]) -> None:
    """Draw each baseline once; runs on the same data share theirs."""
    lines = sorted({(name, loss) for curve in curves for name, loss in curve.baselines.items()})
    for name, loss in lines:
        style = BASELINE_STYLES.get(name, "-.")
        axes.axhline(loss, color="0.35", linestyle=style, linewidth=1.2, label=f"{name} {loss:.3f}")


def _decorate(axes: Any, curves: Sequence[LossCurve], title: str) -> None:
    """Add title, labels, limits and legend."""
    shown = [*(c.losses for c in curves), *(list(c.baselines.values()) for c in curves)]
    finite = np.concatenate([np.asarray(values, dtype=np.float64) for values in shown])
    finite = finite[np.isfinite(finite)]
    if finite.size:  # the first steps of a run should not press the rest flat
        top = max(float(np.quantile(finite, 0.98)), float(finite.min()) + 0.1)
        bottom = float(finite.min())
        axes.set_ylim(bottom - 0.08 * (top - bottom), top + 0.15 * (top - bottom))
    axes.set_title(title, fontsize=14)
    axes.set_xlabel("step", fontsize=12)
    axes.set_ylabel("loss (nats per token)", fontsize=12)
    axes.tick_params(labelsize=11)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=11, loc="upper right")


def _read_baselines(folder: RunFolder) -> dict[str, float]:
    """Return the losses in baselines.json by name; none if there is no such file."""
    if not folder.baselines.exists():
        return {}
    try:
        models = orjson.loads(folder.baselines.read_bytes())["models"]
        return {name: float(model["loss"]) for name, model in models.items()}
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder.baselines}: not what tools.ngram_baseline writes ({error!r}). Delete it or "
            "write it again."
        ) from error


def _number(value: float | None) -> float:
    """Return a logged number; null stands for one that was not finite."""
    return float("nan") if value is None else float(value)
