# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.job_worker FOLDER`: one process of a group that `tools/job_runner.py` starts.

Each job has a process group of its own. After the first error the process ends, since
nobody knows what state the others are in.
"""

import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from bt_megatron.observe.atomic_file import write_atomically
from bt_megatron.parallel import cpu_backend, fused_adam
from bt_megatron.parallel.children import end_with_parent
from bt_megatron.parallel.groups import start_processes, stop_processes

FAILED = 1


def work(folder: Path) -> None:
    """Do the jobs of a folder; RANK and WORLD_SIZE are in the environment.

    Comm: a new group of all ranks for each job, and what the job does.
    """
    cpu_backend.install()  # before the modules of the jobs import Megatron
    fused_adam.install()
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    jobs = json.loads((folder / "jobs.json").read_text())
    functions = [_find(job["function"]) for job in jobs]
    (folder / "ready").touch()
    for index, (job, function) in enumerate(zip(jobs, functions, strict=True)):
        try:
            start_processes(dist.FileStore(str(folder / f"{index}.store"), size))
            value = function(job["arguments"])
            dist.barrier()
            if rank == 0:
                write_atomically(folder / f"{index}.result", json.dumps(value).encode())
            stop_processes()
        except Exception as error:
            content = {"time": time.time(), "rank": rank, "message": one_line(error)}
            write_atomically(folder / f"{index}.error.{rank}", json.dumps(content).encode())
            raise
        gc.collect()


def _find(name: str) -> Callable[[dict[str, Any]], Any]:
    module, _, function = name.partition(":")
    found: Callable[[dict[str, Any]], Any] = getattr(importlib.import_module(module), function)
    return found


def one_line(error: Exception) -> str:
    """Return the kind of an error and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    end_with_parent(os.getppid())
    (folder,) = sys.argv[1:] if argv is None else argv
    work(Path(folder))
    return 0


if __name__ == "__main__":
    try:
        code = main()
    except Exception:
        sys.excepthook(*sys.exc_info())
        code = FAILED
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a communicator that waits for a failed rank never lets Python end
