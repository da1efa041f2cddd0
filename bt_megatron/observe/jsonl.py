# SPDX-License-Identifier: Apache-2.0
"""metrics.jsonl and events.jsonl: append-only files of one JSON object a line.

Each line is handed to the operating system before the call returns, so a
killed process loses at most the line that it was writing. A line counts once
its newline is there; readers leave an unfinished last line alone, and the next
writer cuts it off. A value that is not finite (a NaN loss) is written as null.

A resumed run takes the steps after its checkpoint again. `rewind` moves their
old records to metrics.discarded.jsonl, so that metrics.jsonl holds each step
once. events.jsonl is the history of all attempts and is never cut.
"""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from bt_megatron.errors import DataError, TrainingError
from bt_megatron.observe.record import SCHEMA, Record, to_json_object
from bt_megatron.observe.run_folder import RunFolder

RunEvent = Literal["started", "resumed", "first_step", "evaluated", "saved", "warned", "stopped"]
BatchEvent = Literal["skipped", "recomputed"]
EventKind = RunEvent | BatchEvent


@dataclass(frozen=True, slots=True)
class Line:
    """One finished line of a file."""

    value: dict[str, Any] | None
    """The object, or None if the line is not one."""
    end: int
    """Byte after its newline."""


def read_lines(path: Path, *, start: int = 0, limit: int | None = None) -> Iterator[Line]:
    """Yield the finished lines of a file from a byte on.

    Args:
        path: a file that may be growing; a missing one has no lines.
        start: byte at which a line begins.
        limit: lines to yield at most; none: all.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(start)
        end, count = start, 0
        for raw in file:
            if not raw.endswith(b"\n") or (limit is not None and count >= limit):
                return
            end, count = end + len(raw), count + 1
            yield Line(_parse(raw), end)


def _parse(raw: bytes) -> dict[str, Any] | None:
    """Return the object on a line, or None if there is none."""
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return every object of a metrics or events file.

    Raises:
        DataError: a finished line is not a JSON object.
    """
    records = []
    for number, line in enumerate(read_lines(path), start=1):
        if line.value is None:
            raise DataError(f"{path} line {number}: not a JSON object. Delete that line.")
        records.append(line.value)
    return records


class JsonLines:
    """A file that objects are appended to, one a line."""

    def __init__(self, path: Path) -> None:
        """Open the file for appending, without an unfinished last line.

        Raises:
            TrainingError: the file cannot be written.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _cut_unfinished_line(path)
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise _cannot_write(path, error) from error

    def write(self, value: dict[str, Any]) -> None:
        """Append one object.

        Raises:
            TrainingError: the file cannot be written, because the disk is full for instance.
        """
        line = orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY)
        try:
            written = self._file.write(line)
            if written != len(line):
                raise OSError(f"{written} of {len(line)} bytes fitted")
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class MetricsLog:
    """metrics.jsonl, as the process that reports writes it."""

    def __init__(self, folder: RunFolder) -> None:
        """Open metrics.jsonl; call `rewind` before."""
        self._lines = JsonLines(folder.metrics)

    def write(self, record: Record, *, extra: dict[str, float] | None = None) -> None:
        """Append a record, with metrics of other sources such as `system/...` if there are any."""
        self._lines.write(to_json_object(record, wall_time_s=time.time()) | (extra or {}))

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


class EventsLog:
    """events.jsonl, as the process that reports writes it."""

    def __init__(self, folder: RunFolder) -> None:
        """Open events.jsonl."""
        self._lines = JsonLines(folder.events)

    def write(self, kind: EventKind, *, step: int, **details: Any) -> None:
        """Append what happened after a step; details are JSON values."""
        head = {"schema": SCHEMA, "event": kind, "time": time.time(), "step": step}
        self._lines.write(head | details)

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


def rewind(folder: RunFolder, *, step: int) -> int:
    """Move the metrics of later steps to metrics.discarded.jsonl.

    Call it before `MetricsLog` is opened: with the step of the checkpoint on
    resume, with 0 when a run starts again from nothing. Steps only grow inside
    metrics.jsonl, so what is kept is the beginning of the file, byte for byte.
    Killed in between, it leaves records in both files; the next call moves them
    again, so metrics.discarded.jsonl may hold a record twice.

    Args:
        folder: of the run.
        step: the last one that is kept.

    Returns:
        The number of records moved.

    Raises:
        TrainingError: the folder cannot be written.
    """
    kept = _end_of_step(folder.metrics, step)
    discarded = [line for line in read_lines(folder.metrics, start=kept) if line.value is not None]
    if not discarded:
        return 0
    sink = JsonLines(folder.discarded_metrics)
    for line in discarded:
        sink.write(line.value or {})
    sink.close()
    os.truncate(folder.metrics, kept)
    return len(discarded)


def _end_of_step(path: Path, step: int) -> int:
    """Return the byte before the first record of a later step."""
    end = 0
    for line in read_lines(path):
        if line.value is not None and line.value.get("step", 0) > step:
            break
        end = line.end
    return end


def _cut_unfinished_line(path: Path) -> None:
    """Truncate a file after its last newline."""
    if not path.exists():
        return
    content = path.read_bytes()
    finished = content.rfind(b"\n") + 1
    if finished < len(content):
        os.truncate(path, finished)


def _cannot_write(path: Path, error: OSError) -> TrainingError:
    """Describe a failed write."""
    return TrainingError(
        f"{path}: cannot be written ({error}). Free space or fix the permissions, then start the "
        "same command again: it resumes."
    )
