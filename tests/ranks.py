# SPDX-License-Identifier: Apache-2.0
"""Run a function on several gloo ranks, forked from a process that has imported Megatron once.

Importing takes ten seconds, forking milliseconds. The test process itself never joins a
process group, so every test starts from the same state; tests of one process fork one rank.
"""

import multiprocessing
import multiprocessing.util
import os
import pickle
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from bt_megatron.parallel import cpu_backend, fused_adam, report_queue

torch.set_num_threads(1)
cpu_backend.install()
fused_adam.install()


def run_ranks(
    function: Callable[..., Any], world_size: int, *args: Any, timeout_s: float = 120, **kwargs: Any
) -> list[Any]:
    """Return what `function(*args, **kwargs)` gave on each rank.

    A rank that fails ends the others; its traceback is raised here, with its number.
    """
    assert_clean_parent()
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("fork")
        processes = [
            context.Process(
                target=_rank, args=(rank, world_size, Path(folder), function, args, kwargs)
            )
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        _wait(processes, time.monotonic() + timeout_s)
        return _collect(Path(folder), world_size, timeout_s)


def assert_clean_parent() -> None:
    """Refuse to fork from a test process that has joined a process group itself.

    Its threads do not survive a fork, and what they held stays locked for ever.
    """
    assert not torch.distributed.is_initialized(), "a test joined a process group: use run_ranks"
    started = report_queue.start.cache_info().currsize
    assert not started, "a test started the report queue in the test process: use run_ranks"


def _rank(
    rank: int,
    world_size: int,
    folder: Path,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
    try:
        torch.distributed.init_process_group(
            "gloo",
            store=torch.distributed.FileStore(str(folder / "store"), world_size),
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=60),
        )
        outcome = (True, function(*args, **kwargs))
    except BaseException:  # the rank's outermost frame: the test process raises it
        outcome = (False, traceback.format_exc())
    (folder / f"{rank}.partial").write_bytes(pickle.dumps(outcome))
    (folder / f"{rank}.partial").rename(folder / f"{rank}.result")
    multiprocessing.util._exit_function()  # ends helper processes of checkpoint writers
    sys.stdout.flush()
    os._exit(0 if outcome[0] else 1)


def _wait(processes: list[Any], deadline: float) -> None:
    while any(process.is_alive() for process in processes) and time.monotonic() < deadline:
        if any(process.exitcode not in (0, None) for process in processes):
            deadline = min(deadline, time.monotonic() + 1.0)
        time.sleep(0.01)
    for process in processes:
        if process.is_alive():
            process.kill()
        process.join()


def _collect(folder: Path, world_size: int, timeout_s: float) -> list[Any]:
    results = []
    missing = []
    for rank in range(world_size):
        path = folder / f"{rank}.result"
        if not path.exists():
            missing.append(rank)
            continue
        succeeded, value = pickle.loads(path.read_bytes())
        if not succeeded:
            raise AssertionError(f"rank {rank} failed:\n{value}")
        results.append(value)
    if missing:
        raise AssertionError(f"ranks {missing} gave nothing within {timeout_s} s")
    return results
