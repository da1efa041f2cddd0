# SPDX-License-Identifier: Apache-2.0
"""Where the time of a run went, over all its attempts, from the files of its folder.

Every second between the start of the first process and the last sign of life belongs to
one span, so the sums add up to the whole:

    start       from the start of the process to the end of its first step
    training    steps that the run has kept, and what lies between them
    repeated    steps that a later attempt took again, because no checkpoint held them
    checkpoint  training held up by a checkpoint
    evaluation  losses on the validation split
    down        between the last sign of life of an attempt and the start of the next process

Goodput is the part of `training` that did not wait for data. An attempt that was killed says
nothing at its end, so its last record or event is its last sign of life.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

from bt_megatron.errors import DataError
from bt_megatron.observe.jsonl import read_records
from bt_megatron.observe.run_folder import RunFolder

Kind = Literal["start", "training", "repeated", "checkpoint", "evaluation", "down"]
KINDS: tuple[Kind, ...] = get_args(Kind)
STARTS = ("started", "resumed")


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time in which one thing was done."""

    kind: Kind
    begin: float
    """Unix seconds."""
    end: float
    """Unix seconds."""

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.end - self.begin


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One start of the run and what followed until it ended or was killed."""

    number: int
    """From 1."""
    job: str | None
    """Slurm's job id and how often it was requeued; None outside of a job."""
    first_step: int
    """Steps taken when it began."""
    last_step: int
    """Steps taken when it ended, as far as was logged."""
    ended: str
    """Reason of the `stopped` event, or `killed`; `going on` of the last one without it."""
    spans: tuple[Span, ...]
    """Without gaps, in order."""
    data_wait_s: float
    """Seconds of its kept steps that waited for data."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Goodput:
    """Where the time of a run went."""

    attempts: tuple[Attempt, ...]
    down: tuple[Span, ...]
    """Between the attempts."""
    checkpoint_stalls_s: tuple[float, ...]
    """How long each checkpoint held training up."""

    @property
    def seconds(self) -> dict[Kind, float]:
        """Seconds by kind; they add up to `total_s`."""
        spans = [*self.down, *(span for attempt in self.attempts for span in attempt.spans)]
        return {kind: sum(s.seconds for s in spans if s.kind == kind) for kind in KINDS}

    @property
    def total_s(self) -> float:
        """Seconds from the start of the first process to the last sign of life."""
        return self.attempts[-1].spans[-1].end - self.attempts[0].spans[0].begin

    @property
    def data_wait_s(self) -> float:
        """Seconds of kept steps that waited for data."""
        return sum(attempt.data_wait_s for attempt in self.attempts)

    @property
    def effective_s(self) -> float:
        """Seconds of training that count."""
        return self.seconds["training"] - self.data_wait_s

    @property
    def fraction(self) -> float:
        """Part of the whole time that was effective training, 0 to 1."""
        return self.effective_s / self.total_s


def read_goodput(folder: RunFolder) -> Goodput:
    """Read where the time of a run went.

    Raises:
        DataError: the run has not taken a step, or a file of it is damaged.
    """
    events = read_records(folder.events)
    kept, lost = read_records(folder.metrics), read_records(folder.discarded_metrics)
    parts = list(_split(events))
    if not parts or not kept:
        raise DataError(
            f"{folder.path}: no attempt has taken a step yet. Train at least to the first logged "
            "step (log.interval_steps)."
        )
    records = sorted(kept + lost, key=lambda record: float(record["time"]))
    nexts = [part[0] for part in parts[1:]]
    attempts = []
    for number, (part, following) in enumerate(zip(parts, [*nexts, None], strict=True), start=1):
        until = float("inf") if following is None else float(following["time"])
        own = [r for r in records if part[0]["time"] <= r["time"] < until]
        attempts.append(_attempt(number, part, own, following))
    down = [
        Span("down", before.spans[-1].end, max(before.spans[-1].end, after.spans[0].begin))
        for before, after in pairwise(attempts)
    ]
    stalls = [float(event["stall_s"]) for event in events if "stall_s" in event]
    return Goodput(attempts=tuple(attempts), down=tuple(down), checkpoint_stalls_s=tuple(stalls))


def _split(events: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield the events of each attempt; the first of them is its start."""
    part: list[dict[str, Any]] = []
    for event in events:
        if event["event"] in STARTS:
            if part:
                yield part
            part = [event]
        elif part:
            part.append(event)
    if part:
        yield part


def _attempt(
    number: int,
    events: Sequence[dict[str, Any]],
    records: Sequence[dict[str, Any]],
    following: dict[str, Any] | None,
) -> Attempt:
    """Describe an attempt.

    Args:
        number: from 1.
        events: its own.
        records: that it logged, kept and discarded ones.
        following: the start of the next attempt.
    """
    start, last = events[0], events[-1]
    end = max([float(last["time"]), *(float(record["time"]) for record in records)])
    kept_step = None if following is None else int(following["step"])
    ended = "going on" if following is None else "killed"
    steps = [record for record in records if record.get("kind") == "step"]
    kept = [r for r in steps if kept_step is None or r["step"] <= kept_step]
    return Attempt(
        number=number,
        job=_job(start),
        first_step=int(start["step"]),
        last_step=max((int(record["step"]) for record in steps), default=int(start["step"])),
        ended=str(last["reason"]) if last["event"] == "stopped" else ended,
        spans=tuple(_spans(events, end=end, lost_from=_lost_from(events, records, kept_step))),
        data_wait_s=sum(_data_wait(kept, first_step=int(start["step"]))),
    )


def _job(start: dict[str, Any]) -> str | None:
    if "slurm_job_id" not in start:
        return None
    restarts = start.get("slurm_restart_count", "0")
    return f"{start['slurm_job_id']}.{restarts}"


def _lost_from(
    events: Sequence[dict[str, Any]], records: Sequence[dict[str, Any]], kept_step: int | None
) -> float:
    """Return the time after which every step was taken again: that of the checkpoint."""
    if kept_step is None:
        return float("inf")
    for event in events:
        if event["event"] == "saved" and event["step"] == kept_step and "begun" in event:
            is_last = events[-1]["event"] == "stopped" and events[-1]["step"] == kept_step
            return float("inf") if is_last else float(event["begun"])
    kept = [float(record["time"]) for record in records if record["step"] <= kept_step]
    return max(kept, default=0.0)


def _spans(events: Sequence[dict[str, Any]], *, end: float, lost_from: float) -> Iterator[Span]:
    """Yield the spans of an attempt, without gaps."""
    begin = float(events[0].get("process_start", events[0]["time"]))
    first = next((float(e["time"]) for e in events if e["event"] == "first_step"), None)
    first = first if first is not None else float(events[0]["time"])
    yield Span("start", begin, min(max(begin, first), end))
    cursor = min(max(begin, first), end)
    for pause in sorted(_pauses(events), key=lambda span: span.begin):
        if pause.end <= cursor or pause.begin >= end:
            continue
        yield from _steps(cursor, max(cursor, pause.begin), lost_from)
        yield Span(pause.kind, max(cursor, pause.begin), min(pause.end, end))
        cursor = min(pause.end, end)
    yield from _steps(cursor, end, lost_from)


def _pauses(events: Iterable[dict[str, Any]]) -> Iterator[Span]:
    """Yield the times in which no steps were taken."""
    for event in events:
        if event["event"] == "evaluated" and "seconds" in event:
            yield Span("evaluation", event["time"] - event["seconds"], event["time"])
        if event["event"] == "saved" and "stall_s" in event:
            yield Span("checkpoint", event["begun"], event["begun"] + event["stall_s"])


def _steps(begin: float, end: float, lost_from: float) -> Iterator[Span]:
    """Yield a time of steps, cut where those begin that were taken again."""
    if begin < min(end, lost_from):
        yield Span("training", begin, min(end, lost_from))
    if max(begin, lost_from) < end:
        yield Span("repeated", max(begin, lost_from), end)


def _data_wait(steps: Iterable[dict[str, Any]], *, first_step: int) -> Iterator[float]:
    """Yield the seconds that the steps up to each record waited for data."""
    before = first_step
    for record in steps:
        count = record["step"] - before
        before = record["step"]
        yield count * record["perf/step_s"] * (record["perf/data_wait_fraction"] or 0.0)
