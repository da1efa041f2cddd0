# SPDX-License-Identifier: Apache-2.0
"""Progress on stderr: a bar on a terminal, a line now and then in a log file."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

_SECONDS_BETWEEN_LINES = 30.0
_MEGABYTE = 1e6


class ByteProgress:
    """Shows how many bytes of a known or unknown total are done, the rate and the time left.

    Args:
        title: what is going on.
        total_bytes: size of all inputs; None if it is not known (a pipe).
    """

    def __init__(self, title: str, *, total_bytes: int | None) -> None:
        self._console = Console(stderr=True)
        self._title = title
        self._done = 0
        self._total = total_bytes
        self._started = time.monotonic()
        self._last_line = self._started
        self._bar = Progress(*_columns(), console=self._console)
        self._task = self._bar.add_task(title, total=total_bytes, note="")

    def advance_to(self, bytes_done: int, note: str = "") -> None:
        """Show a new position.

        Args:
            bytes_done: bytes read so far.
            note: counts worth showing beside the bar.
        """
        if self._console.is_terminal:
            self._bar.update(self._task, completed=bytes_done, note=note)
            return
        now = time.monotonic()
        if now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            line = progress_line(bytes_done, self._total, seconds=now - self._started)
            self._console.print(f"{self._title}: {line}  {note}", soft_wrap=True, highlight=False)

    def advance_by(self, size: int) -> None:
        """Show that so many more bytes are done."""
        self._done += size
        self.advance_to(self._done)

    def begin_stage(self, title: str) -> None:
        """Go over to work of unknown length."""
        self._title = title
        self._bar.update(self._task, description=title, total=None)
        if not self._console.is_terminal:
            self._console.print(f"{title} ...", soft_wrap=True, highlight=False)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._console.is_terminal:
            self._bar.stop()


def progress_line(bytes_done: int, total_bytes: int | None, *, seconds: float) -> str:
    """Say in words how far the work is; rates are in 10^6 bytes a second of input."""
    rate = bytes_done / max(seconds, 1e-9)
    speed = f"{bytes_done / _MEGABYTE:,.1f} MB done, {rate / _MEGABYTE:.1f} MB/s"
    if not total_bytes or not bytes_done:
        return f"{speed}, time left unknown"
    left = max(total_bytes - bytes_done, 0) / rate
    minutes, remainder = divmod(round(left), 60)
    percent = 100 * bytes_done / total_bytes
    return f"{percent:.1f}%  {speed}, {minutes // 60}h{minutes % 60:02d}m{remainder:02d}s left"


def _columns() -> list[ProgressColumn]:
    return [
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    ]
