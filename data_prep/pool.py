# SPDX-License-Identifier: Apache-2.0
"""Shards made by several processes, one input each at a time.

Progress comes back through shared memory, results through the futures. A stop,
by Ctrl-C or because one input failed, is noticed by the workers after their
current batch; they then discard what is unfinished. If the parent is killed,
its workers go too.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

from bt_megatron.data.manifest import ShardRecord
from bt_megatron.errors import DataError
from data_prep.folder_lock import HeldLock
from data_prep.shard import Position, write_shard
from data_prep.tokenizer import TextTokenizer

_POLL_SECONDS = 0.2
_FIELDS = len(Position._fields)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardJob:
    """What the shards of one command have in common."""

    tokenizer: Path
    """The tokenizer.json."""
    eos_token: str
    """The token that ends a document."""
    folder: Path
    """Where the shards go."""
    strict: bool
    """Stop at the first problem."""
    engine: str
    """FAST or REFERENCE."""
    lock: HeldLock | None = None
    """That of the folder: held by every worker as well."""

    def load_tokenizer(self) -> TextTokenizer:
        """Load the tokenizer with its engine."""
        return TextTokenizer(self.tokenizer, eos_token=self.eos_token, engine=self.engine)


def share_cores(workers: int, *, inputs: int) -> int:
    """Share cores: a process for each input up to their number, threads for what is left.

    Sets the number of threads of both engines, which they read when they first encode, here
    and in the processes to come, unless RAYON_NUM_THREADS is set.

    Args:
        workers: cores to use.
        inputs: what there is to do.

    Returns:
        The number of processes.
    """
    processes = max(1, min(workers, inputs))
    os.environ.setdefault("RAYON_NUM_THREADS", str(workers // processes))
    return processes


def write_shards(
    job: ShardJob,
    sources: dict[str, Path],
    *,
    tokenizer: TextTokenizer,
    processes: int,
    on_positions: Callable[[list[Position]], None],
) -> list[ShardRecord]:
    """Make the shards of several inputs.

    Args:
        job: what they have in common.
        sources: inputs by shard name.
        tokenizer: that of the job; with one process, this process does the work itself.
        processes: as many inputs at a time.
        on_positions: called now and then with the position in each input.

    Returns:
        The records, in the order of `sources`.

    Raises:
        DataError: an input cannot be read, or has a problem and strict is set.
        EngineDiffersError: the engine is not equal to `tokenizers`.
    """
    processes = min(processes, len(sources))
    if processes > 1:
        return _write_in_processes(job, sources, processes, on_positions)
    positions = [Position(0, 0, 0)] * len(sources)
    records = []
    for i, (name, source) in enumerate(sources.items()):

        def show(position: Position, i: int = i) -> None:
            positions[i] = position
            on_positions(positions)

        prefix = job.folder / name
        records.append(write_shard(source, prefix, tokenizer, strict=job.strict, on_position=show))
    return records


class _StoppedError(Exception):
    """The parent asked the workers to stop."""


class _Worker:
    """The state of one worker process, set up once."""

    def __init__(self, job: ShardJob, positions: Any, stop: Any) -> None:
        self.job = job
        self.tokenizer = job.load_tokenizer()
        self.positions = positions
        self.stop = stop

    def write(self, i: int, name: str, source: Path) -> ShardRecord:
        def show(position: Position) -> None:
            self.positions[i * _FIELDS : (i + 1) * _FIELDS] = position
            if self.stop.value:
                raise _StoppedError

        prefix = self.job.folder / name
        strict = self.job.strict
        return write_shard(source, prefix, self.tokenizer, strict=strict, on_position=show)


_worker: _Worker | None = None


def _start_worker(job: ShardJob, positions: Any, stop: Any) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it and sets the stop flag
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    _worker = _Worker(job, positions, stop)


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "workers are started by a parent"
    connection.wait([parent.sentinel])
    os._exit(1)


def _write_in_worker(i: int, name: str, source: Path) -> ShardRecord:
    assert _worker is not None, "the pool starts its workers with _start_worker"
    return _worker.write(i, name, source)


def _write_in_processes(
    job: ShardJob,
    sources: dict[str, Path],
    processes: int,
    on_positions: Callable[[list[Position]], None],
) -> list[ShardRecord]:
    context = multiprocessing.get_context("spawn")
    shared = context.Array("q", len(sources) * _FIELDS, lock=False)
    stop = context.Value("b", 0, lock=False)
    start = (job, shared, stop)
    with ProcessPoolExecutor(processes, context, _start_worker, start) as pool:
        futures = [
            pool.submit(_write_in_worker, i, name, source)
            for i, (name, source) in enumerate(sources.items())
        ]
        try:
            _follow(futures, lambda: on_positions(_positions(shared)))
            return [future.result() for future in futures]
        except BrokenProcessPool as error:
            raise DataError(
                f"{job.folder} - one of {processes} worker processes was killed, perhaps for want "
                "of memory - run the same command again with fewer --workers; finished shards "
                "are kept"
            ) from error
        finally:
            stop.value = 1
            pool.shutdown(cancel_futures=True)


def _follow(futures: list[Future[ShardRecord]], show: Callable[[], None]) -> None:
    """Report progress until all futures are done or one has failed, and raise its error."""
    pending = set(futures)
    while pending:
        done, pending = wait(pending, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
        for future in done:
            future.result()
        show()


def _positions(shared: Any) -> list[Position]:
    values = list(shared)
    return [Position(*values[at : at + _FIELDS]) for at in range(0, len(values), _FIELDS)]
