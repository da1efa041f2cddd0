# SPDX-License-Identifier: Apache-2.0
"""The only place of bt_megatron that prints.

One line a logged step, always in the same order, so that eyes and scripts find
their way. Colour only on a terminal. A number that is not known is `n/a`, and
the first time a warning says why.
"""

import sys
import threading
from collections.abc import Sequence
from typing import Literal, TextIO

from bt_megatron.observe.record import EvaluationRecord, StepRecord

_COLOURS = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33"}
MAX_BANNER_LINES = 15

UNKNOWN = {
    "mfu": "mfu is n/a: the peak FLOP/s of this device are not in bt_megatron/observe/flops_peak.py"
    " (add a row with its source).",
    "memory_gib": "mem is n/a: this device does not report its memory.",
    "grad_norm": "gnorm is n/a: the optimizer did not report a gradient norm.",
}


class Console:
    """What a person sees of a run; silent in every process but one."""

    def __init__(
        self,
        *,
        enabled: bool = True,
        device: Literal["gpu", "cpu"] = "gpu",
        stream: TextIO | None = None,
    ) -> None:
        """Prepare to print.

        Args:
            enabled: whether this process prints at all.
            device: what tokens per second are counted per (a process, on cpu).
            stream: where to; none: standard output.
        """
        self._enabled = enabled
        self._device = device
        self._stream = stream if stream is not None else sys.stdout
        self._colour = self._stream.isatty()
        self._lock = threading.Lock()
        self._explained: set[str] = set()

    def banner(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        """Print what is about to run: a title and aligned rows of name and value."""
        assert len(rows) < MAX_BANNER_LINES, f"a banner has {MAX_BANNER_LINES} lines at most"
        self._table(title, rows)

    def step(self, record: StepRecord) -> None:
        """Print the line of a logged step, and once why a figure of it is not known."""
        for name, reason in UNKNOWN.items():
            if getattr(record, name) is None and name not in self._explained:
                self._explained.add(name)
                self.warn(reason)
        self._print(format_step(record, device=self._device))

    def evaluation(self, record: EvaluationRecord, *, total_steps: int) -> None:
        """Print the line of an evaluation."""
        self._print(format_evaluation(record, total_steps=total_steps), "green")

    def note(self, text: str) -> None:
        """Print something worth knowing."""
        self._print(text, "dim")

    def warn(self, text: str) -> None:
        """Print a warning."""
        self._print(f"WARNING {text}", "yellow")

    def error(self, text: str) -> None:
        """Print why the run ends."""
        self._print(f"error: {text}", "red")

    def summary(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        """Print the table at the end of a run."""
        self._table(title, rows)

    def _table(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        """Print a title and aligned rows."""
        self._print(title, "bold")
        width = max((len(name) for name, _ in rows), default=0)
        for name, value in rows:
            self._print(f"  {name:<{width}}  {value}")

    def _print(self, text: str, style: str | None = None) -> None:
        """Print a line; a terminal or pipe that is gone does not end the run."""
        if not self._enabled:
            return
        if self._colour and style:
            text = f"\x1b[{_COLOURS[style]}m{text}\x1b[0m"
        try:
            with self._lock:
                print(text, file=self._stream, flush=True)  # noqa: T201
        except (OSError, ValueError):
            self._enabled = False


def format_step(record: StepRecord, *, device: str = "gpu") -> str:
    """Return the line of a logged step.

    Such as: step  1200/50000  2.4%  loss 2.8134  gnorm 0.41  lr 2.9e-04  tok/s/gpu 41,212
    mfu 38.4%  mem 61.2/79.1 GiB  data 0.8%  eta 14h02m.
    """
    parts = [
        _format_progress(record.step, record.total_steps),
        f"{record.step / record.total_steps:.1%}",
        f"loss {record.loss:.4f}",
        f"gnorm {_or_unknown(record.grad_norm, '.2f')}",
        f"lr {record.lr:.1e}",
        f"tok/s/{device} {record.tokens_per_s_per_device:,.0f}",
        f"mfu {_or_unknown(record.mfu, '.1%')}",
        f"mem {_format_memory(record.memory_gib, record.memory_total_gib)}",
        f"data {record.data_wait_fraction:.1%}",
        f"eta {format_duration(record.eta_s)}",
    ]
    if record.skipped_steps:
        parts.append(f"skipped {record.skipped_steps}")
    return "  ".join(parts)


def format_evaluation(record: EvaluationRecord, *, total_steps: int) -> str:
    """Return the line of an evaluation."""
    return "  ".join(
        [
            _format_progress(record.step, total_steps),
            f"validation loss {record.loss:.4f}",
            f"perplexity {record.perplexity:.2f}",
            f"bits/byte {_or_unknown(record.bits_per_byte, '.4f')}",
            f"targets {record.targets:,}",
        ]
    )


def format_duration(seconds: float | None) -> str:
    """Return a duration as its two largest units, such as 14h02m."""
    if seconds is None:
        return "n/a"
    whole = max(0, round(seconds))
    minutes, hours, days = whole // 60, whole // 3600, whole // 86_400
    if days:
        return f"{days}d{hours % 24:02d}h"
    if hours:
        return f"{hours}h{minutes % 60:02d}m"
    if minutes:
        return f"{minutes}m{whole % 60:02d}s"
    return f"{whole}s"


def _format_progress(step: int, total_steps: int) -> str:
    """Return the step, as wide for the first as for the last."""
    return f"step {step:>{len(str(total_steps))}}/{total_steps}"


def _format_memory(used_gib: float | None, total_gib: float | None) -> str:
    """Return used and total memory, as far as they are known."""
    if used_gib is None:
        return "n/a"
    if total_gib is None:
        return f"{used_gib:.1f} GiB"
    return f"{used_gib:.1f}/{total_gib:.1f} GiB"


def _or_unknown(value: float | None, spec: str) -> str:
    """Return a formatted number, or n/a."""
    return "n/a" if value is None else format(value, spec)
