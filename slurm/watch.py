# SPDX-License-Identifier: Apache-2.0
"""What people ask of a submitted run: how it is, what it says, to stop, to go on. No torch."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from bt_megatron.checkpoint.folder import complete_checkpoints, step_of
from bt_megatron.errors import LaunchError
from bt_megatron.observe.jsonl import read_lines
from slurm import client
from slurm.records import Job, Records
from slurm.submit import live_job, submit_script

TAIL_BYTES = 1 << 16
"""The newest record is looked for in this many bytes at the end of metrics.jsonl."""

POLL_S = 0.5
LINES = 20
"""Lines of a log that are shown first."""


def status(records: Records) -> dict[str, Any]:
    """Return how a run is: its job, attempts, step, newest checkpoint, failed nodes."""
    jobs = records.jobs()
    job = jobs[-1]
    attempts = records.attempts()
    newest = next(complete_checkpoints(records.folder.checkpoints), None)
    last = last_step(records.folder.metrics)
    return {
        "run_dir": str(records.folder.path),
        "job": job.job,
        "via": job.via,
        **_state(job),
        "jobs": len(jobs),
        "step": last.get("step"),
        "total_steps": last.get("total_steps"),
        "loss": last.get("train/loss"),
        "last_step_ago_s": round(time.time() - last["time"], 1) if last else None,
        "checkpoint_step": step_of(newest) if newest else None,
        "attempts": len(attempts),
        "last_attempt": attempts[-1] if attempts else None,
        "failed_nodes": records.failed_nodes(),
        "stop_requested": records.stop.exists(),
        "log": str(_log(records, job)),
    }


def follow(records: Records, *, rank: int | None, wait: bool) -> Iterator[str]:
    """Yield what a run has printed, and go on with what it prints.

    Args:
        records: of the run.
        rank: whose output; none: the job's own log, one line a decision.
        wait: go on until interrupted, over attempts and jobs; else end at the end.
    """
    path, place = None, 0
    while True:
        now = _log(records, records.jobs()[-1], rank=rank)
        if now != path:
            path, place = now, max(0, _start_of_tail(now))
        if path.exists():
            with path.open("rb") as file:
                file.seek(place)
                text = file.read()
            place += len(text)
            yield text.decode(errors="replace")
        elif not wait:
            raise LaunchError(f"{path}: nothing there yet. Add -f to wait for it.")
        if not wait:
            return
        time.sleep(POLL_S)


def cancel(records: Records, *, now: bool) -> dict[str, Any]:
    """Stop a run: after a checkpoint, or at once.

    Raises:
        LaunchError: nothing of the run is running, or Slurm does not answer.
    """
    job = records.jobs()[-1]
    records.stop.touch()
    if job.via == "local":
        _signal_local(job, now=now)
        return {"job": job.job, "saving": not now}
    state = live_job(records)
    if state is None:
        raise LaunchError(f"{records.folder.path}: no job of this run is waiting or running.")
    saves = not now and state.state == "RUNNING" and job.via != "submitit"
    client.scancel(job.job, *(["--batch", "--signal=USR1"] if saves else []))
    return {"job": job.job, "saving": saves}


def resume(records: Records) -> dict[str, Any]:
    """Submit the script of a run again, or release its job if Slurm holds it.

    Raises:
        LaunchError: a job of it is waiting or running, or Slurm refuses it.
    """
    state = live_job(records)
    if state is not None and "held" in state.reason.lower():
        client.release(state.job_id)
        return {"job": state.job_id, "log": str(_log(records, records.jobs()[-1]))}
    if state is not None:
        raise LaunchError(
            f"{records.folder.path}: job {state.job_id} of this run is {state.state}. It goes on "
            "by itself; see python -m slurm status."
        )
    client.validate(records.script)
    records.stop.unlink(missing_ok=True)
    records.fruitless.unlink(missing_ok=True)
    job = submit_script(records)
    return {"job": job, "log": str(records.path / f"job-{job}.log")}


def _state(job: Job) -> dict[str, Any]:
    if job.via == "local":
        is_running = job.pid is not None and psutil.pid_exists(job.pid)
        return {"state": "RUNNING" if is_running else "ENDED"}
    state = client.job_states([job.job])[job.job]
    return {
        "state": state.state,
        "reason": state.reason,
        "nodes": state.nodes,
        "time_left": state.time_left,
    }


def last_step(metrics: Path) -> dict[str, Any]:
    """Return the newest record of a step, or an empty one."""
    if not metrics.exists():
        return {}
    start = max(0, metrics.stat().st_size - TAIL_BYTES)
    last: dict[str, Any] = {}
    for line in read_lines(metrics, start=start):
        if line.value is not None and line.value.get("kind") == "step":
            last = line.value
    return last


def _log(records: Records, job: Job, *, rank: int | None = None) -> Path:
    if job.via in ("submitit", "local"):
        folder = records.path / "submitit"
        return folder / f"{job.job}_{rank or 0}_log.out"
    if rank is None:
        return records.path / f"job-{job.job}.log"
    return records.folder.path / "logs" / "latest" / f"rank_{rank:04d}.log"


def _start_of_tail(path: Path) -> int:
    """Return the byte at which the last LINES lines of a file begin."""
    if not path.exists():
        return 0
    content = path.read_bytes()
    kept = b"\n".join(content.rstrip(b"\n").split(b"\n")[-LINES:])
    return len(content.rstrip(b"\n")) - len(kept)


def _signal_local(job: Job, *, now: bool) -> None:
    try:
        os.kill(job.pid or -1, signal.SIGINT if now else signal.SIGTERM)
    except (ProcessLookupError, PermissionError) as error:
        raise LaunchError(f"process {job.pid} of this run has ended.") from error


def write_out(text: str) -> None:
    """Write to standard output at once."""
    sys.stdout.write(text)
    sys.stdout.flush()
