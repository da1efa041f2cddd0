# SPDX-License-Identifier: Apache-2.0
"""The end of a rank that stops because of another: what it leaves behind, and how it goes.

The process ends whatever happens: its main thread may wait for ever inside of a
collective or a kernel, its standard error and its storage may take nothing any more.
"""

import contextlib
import datetime
import faulthandler
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import psutil

from bt_megatron.faults.verdict import RankState, Verdict

HOSTS = "hosts"
"""File in the folder of fault files: machines of ranks at fault, one a line, for launchers."""

REPORT_S = 5.0
"""How long writing the report may take."""


def report(verdict: Verdict, rank: int, folder: Path, *, own_error: str = "") -> None:
    """Print why this rank stops, and write that and the stacks of its threads into a file.

    Args:
        verdict: why.
        rank: of this process.
        folder: of the run's fault files.
        own_error: traceback of an error that the fault caused here.
    """
    arguments = (verdict, rank, folder, own_error)
    thread = threading.Thread(target=_report, args=arguments, name="last-words", daemon=True)
    thread.start()
    thread.join(REPORT_S)


def end_stopped_neighbours(verdict: Verdict, states: Sequence[RankState]) -> None:
    """Kill silent ranks of this machine: a stopped process cannot end itself.

    The start time tells whether a process is still the one that reported its number.
    """
    if verdict.kind != "silent":
        return
    for state in states:
        if state.rank not in verdict.ranks or state.host != socket.gethostname():
            continue
        with contextlib.suppress(psutil.Error, OSError):
            if psutil.Process(state.pid).create_time() == state.started:
                os.kill(state.pid, signal.SIGKILL)


def _report(verdict: Verdict, rank: int, folder: Path, own_error: str) -> None:
    path = folder / f"rank_{rank:04d}.txt"
    with contextlib.suppress(OSError):
        _write(path, verdict, own_error)
        if rank == verdict.speaker and verdict.hosts:
            with (folder / HOSTS).open("a") as file:
                file.write("".join(f"{host}\n" for host in verdict.hosts))
    lines = [f"rank {rank} stops: {verdict.headline}"]
    if rank == verdict.speaker:
        lines = [f"error: {verdict.headline}", *(f"  {line}" for line in verdict.details)]
        lines.append(f"The stacks of each rank are in {folder}. Start again to resume the run.")
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        print("\n".join(lines), file=sys.stderr, flush=True)  # noqa: T201


def _write(path: Path, verdict: Verdict, own_error: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        file.write("\n".join((f"{now} {verdict.headline}", *verdict.details, own_error, "")))
        file.flush()
        faulthandler.dump_traceback(file, all_threads=True)
        file.write("\n")
