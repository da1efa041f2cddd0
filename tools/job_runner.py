# SPDX-License-Identifier: Apache-2.0
"""Runs functions in groups of processes, one function after another, and watches them.

Importing Megatron takes ten seconds and more, so the processes are started once for many
jobs (`tools/job_worker.py`). If a job fails, ends its processes or hangs, it gets an error
of one line, and new processes go on with the next one. Nothing here imports torch.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bt_megatron.errors import RankError
from bt_megatron.parallel.children import end_with_parent

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 300.0
"""A job, or the start, that takes longer than this hangs."""
STOP_S = 40.0
"""torchrun ends its processes by itself within 30 s of a SIGTERM."""
POLL_S = 0.05
TIME_IS_UP = "not measured: the time was up"

Command = Callable[[int, Path], list[str]]
"""From a number of processes and the folder of their jobs to what starts them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A function that all processes of a group call together."""

    name: str
    """For people."""
    function: str
    """`module:function`; takes the arguments, gives values that JSON can hold."""
    arguments: dict[str, Any]
    """Values that JSON can hold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a job came to."""

    name: str
    """Name of the job."""
    value: Any = None
    """What rank 0 returned."""
    error: str | None = None
    """Why there is no value, in one line."""


def worker_command(processes: int, folder: Path) -> list[str]:
    """Return the command that starts the processes of a group."""
    work = ["-m", "tools.job_worker", str(folder)]
    if processes == 1:
        return [sys.executable, *work]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [sys.executable, *launcher, *work]


@dataclass(frozen=True, kw_only=True, slots=True)
class Crew:
    """Processes that do jobs together."""

    processes: int
    """How many."""
    on_cpu: bool
    """Whether they leave GPUs alone."""
    folder: Path
    """Where jobs and results are kept meanwhile."""
    deadline: float = float("inf")
    """When to stop, in the time of `time.monotonic`."""
    patience_s: float = PATIENCE_S
    """Seconds after which a job is taken to hang."""
    command: Command = worker_command
    """What starts them."""

    @property
    def is_late(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() >= self.deadline


def run_jobs(jobs: Sequence[Job], crew: Crew) -> Generator[Outcome]:
    """Yield what each job came to, in their order, as soon as it is known.

    Processes are stopped when the generator ends or is closed, also by an exception.

    Raises:
        RankError: the processes do not start.
    """
    waiting = list(jobs)
    while waiting and not crew.is_late:
        for outcome in _attempt(waiting, crew):
            waiting = waiting[1:]
            yield outcome
    for job in waiting:
        yield Outcome(name=job.name, error=TIME_IS_UP)


def _attempt(jobs: Sequence[Job], crew: Crew) -> Generator[Outcome]:
    """Start processes; yield outcomes until one is an error, or all jobs are done."""
    folder = Path(tempfile.mkdtemp(dir=crew.folder))
    (folder / "jobs.json").write_text(json.dumps([asdict(job) for job in jobs]))
    process = _start(folder, crew)
    try:
        for index, job in enumerate(jobs):
            error = _wait_for(folder / f"{index}.result", process, crew)
            if error is not None:
                message = error if error == TIME_IS_UP else _cause(folder, index, error)
                yield Outcome(name=job.name, error=message)
                return
            value = json.loads((folder / f"{index}.result").read_text())
            yield Outcome(name=job.name, value=value)
    finally:
        _stop(process)


def _start(folder: Path, crew: Crew) -> "subprocess.Popen[bytes]":
    environment = {"OMP_NUM_THREADS": "1"} | os.environ
    if crew.on_cpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    if crew.processes == 1:
        environment |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    parent = os.getpid()
    with (folder / "log").open("wb") as log:
        # A session of its own: the terminal's Ctrl-C is for this process, which passes it on.
        return subprocess.Popen(
            crew.command(crew.processes, folder),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=ROOT,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: end_with_parent(parent, signal.SIGTERM),
        )


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """End the processes; what torchrun started ends with it."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(STOP_S)
    finally:
        process.kill()
        process.wait()


def _wait_for(result: Path, process: "subprocess.Popen[bytes]", crew: Crew) -> str | None:
    """Return None once there is a result, else why there is none."""
    since = time.monotonic()
    while True:
        has_ended = process.poll() is not None  # asked first: a result may come before the end
        if result.exists():
            return None
        if has_ended:
            return "its processes ended without a word"
        if crew.is_late:
            return TIME_IS_UP
        if time.monotonic() - since > crew.patience_s:
            return f"no result after {crew.patience_s:.0f} s"
        time.sleep(POLL_S)


def _cause(folder: Path, index: int, otherwise: str) -> str:
    """Return what the rank that failed first says, in one line.

    Raises:
        RankError: no job was begun.
    """
    errors = [json.loads(path.read_text()) for path in folder.glob(f"{index}.error.*")]
    if errors:
        first = min(errors, key=lambda error: error["time"])
        return f"rank {first['rank']}: {first['message']}"
    log = (folder / "log").read_text(errors="replace").strip().splitlines()
    if not (folder / "ready").exists():
        raise RankError("the processes did not start:\n" + "\n".join(log[-20:]))
    return f"{otherwise}; they last wrote: {log[-1]}" if log else otherwise
