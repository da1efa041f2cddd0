# SPDX-License-Identifier: Apache-2.0
"""How far layouts may be from one process, and how far they are, as lines and rows.

Nothing here imports torch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tools.benchmark_file import Row
from tools.layout_cases import LayoutCase

Precision = Literal["fp32", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
LOSS_UNITS = {"fp32": "relative", "bf16": "nats"}
BF16_LOSS = 2e-3
"""In nats."""
BF16_GRADIENT = 2.0
"""In units of what bf16 itself differs from float32: two runs that are that far from float32 are
at most twice that far from each other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a layout may differ from one process."""

    loss: float
    """In nats under bf16, else in units of the loss."""
    gradient: float
    """In units of the norm of each gradient."""
    text: str
    """For people, with the reason."""


FP32_ON_CPU = Limits(
    loss=1e-6, gradient=1e-5, text="loss 1e-6 of it, each gradient 1e-5 of its norm"
)
FP32_ON_GPU = Limits(
    loss=1e-5,
    gradient=1e-4,
    text="loss 1e-5 of it, each gradient 1e-4 of its norm: ten times those of CPUs, because "
    "cuBLAS sums products of other shapes in another order, in parts",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What a layout gave in a precision."""

    case: LayoutCase
    precision: str
    limits: Limits
    layers: str = ""
    """Library of the layers."""
    difference: Mapping[str, Any] | None = None
    """Fields of `layout_jobs.Difference`."""
    error: str | None = None
    """Why there is none."""

    @property
    def loss(self) -> float:
        """Difference of the loss, in the unit of the limit."""
        assert self.difference is not None, "asked for results without an error"
        return float(self.difference[f"loss_{LOSS_UNITS[self.precision]}"])

    @property
    def gradient(self) -> float:
        """Difference of the gradients."""
        assert self.difference is not None, "asked for results without an error"
        return float(self.difference["gradient"])

    @property
    def is_good(self) -> bool:
        """Whether there is a difference and it keeps the limits."""
        if self.difference is None:
            return False
        return self.loss <= self.limits.loss and self.gradient <= self.limits.gradient


BF16_ITSELF = Limits(loss=0.01, gradient=0.1, text="loss 0.01 nats, each gradient 10 % of its norm")
"""Of bf16 against float32, both on one process: a bf16 training that loses something, and loses
it in all layouts alike, is found here only."""


def limits_of(precision: str, *, on_cpu: bool, own: Mapping[str, Any] | None) -> Limits:
    """Return the limits of a precision.

    Args:
        precision: fp32 or bf16.
        on_cpu: where it is run.
        own: what bf16 differs from float32 on one process (`layout_jobs.Difference`).
    """
    if precision == "fp32":
        return FP32_ON_CPU if on_cpu else FP32_ON_GPU
    assert own is not None, "bf16 is run after float32"
    band = BF16_GRADIENT * own["gradient"]
    return Limits(
        loss=BF16_LOSS,
        gradient=band,
        text=f"loss {BF16_LOSS} nats, each gradient {band:.1e} of its norm, "
        f"{BF16_GRADIENT:g} times what bf16 itself differs from float32 on one process (first "
        f"line; its limits: {BF16_ITSELF.text})",
    )


def heading(precision: str, limits: Limits, *, layers: str, width: int) -> list[str]:
    """Return the lines above the layouts of a precision."""
    return [
        "",
        f"{precision}, {layers} layers, against one process. Limits: {limits.text}.",
        f"{'layout':<{width}}  {'loss':>8}  {'gradient':>8}",
    ]


def line(result: Result, *, width: int) -> str:
    """Return the line of a layout."""
    name = f"{result.case.name:<{width}}"
    if result.difference is None:
        return f"{name}  FAILED: {result.error}"
    numbers = f"{result.loss:8.1e}  {result.gradient:8.1e}"
    if result.is_good:
        return f"{name}  {numbers}" + (f"  {result.case.cut}" if result.case.cut else "")
    return f"{name}  {numbers}  OVER THE LIMIT, gradient of {result.difference['gradient_name']}"


def summary(results: Sequence[Result]) -> str:
    """Return the last line."""
    bad = [f"{r.case.name} ({r.precision})" for r in results if not r.is_good]
    if bad:
        return f"{len(bad)} of {len(results)} comparisons failed: {', '.join(bad)}"
    return f"all {len(results)} comparisons are within the limits"


def rows_of(results: Sequence[Result], *, model: str, detail: Mapping[str, Any]) -> list[Row]:
    """Return what is kept; failed layouts have no number, and their error in the detail.

    Args:
        results: of all layouts.
        model: name of the model, which cases of others than the block model bear.
        detail: what all results share.
    """
    prefix = "layout" if model == "block" else f"layout/{model}"
    rows = []
    for result in results:
        case = f"{prefix}/{result.case.name}/{result.precision}"
        about = {
            **detail,
            "processes": result.case.processes,
            "cut": result.case.cut,
            "layers": result.layers,
        }
        if result.difference is None:
            row = Row(case=case, metric="failed", value=1, unit="", detail={"error": result.error})
            rows.append(row)
            continue
        norm = {"grad_norm_relative": finite(result.difference["grad_norm_relative"])}
        name = {"gradient": result.difference["gradient_name"]}
        for metric, value, limit, unit, more in (
            ("loss", result.loss, result.limits.loss, LOSS_UNITS[result.precision], norm),
            ("gradient", result.gradient, result.limits.gradient, "relative", name),
        ):
            rows.append(
                Row(
                    case=case,
                    metric=f"{metric}_difference",
                    value=finite(value),
                    unit=unit,
                    detail={**about, **more, "limit": limit},
                )
            )
    return rows


def finite(value: float) -> float:
    """Return a number that JSON can hold; what is infinite is the largest number."""
    return min(value, math.nextafter(math.inf, 0))
