# SPDX-License-Identifier: Apache-2.0
"""Training processes to be killed: forked, so that starting one takes less than a second."""

import contextlib
import multiprocessing
import os
import random
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.backends.backend_agg  # noqa: F401  imported once, for all forks
import torch._dynamo  # noqa: F401  likewise
import yaml

import tests.ranks  # likewise, and Megatron
from bt_megatron.config.load import to_mapping
from bt_megatron.config.schema import RunConfig
from bt_megatron.observe.jsonl import read_records
from bt_megatron.observe.run_folder import RunFolder
from bt_megatron.training import loop, run  # noqa: F401  likewise
from bt_megatron.training.command import main_train


class Training:
    """The processes of one `python -m bt_megatron train`."""

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        *,
        world_size: int = 1,
        settings: Mapping[int, Sequence[str]] | None = None,
        prepare: Callable[[int], None] | None = None,
    ) -> None:
        """Start them.

        Args:
            config: of the run.
            folder: for the configuration file and what they print.
            world_size: number of processes.
            settings: further command-line arguments by rank.
            prepare: called with its rank in each process before it trains, to spoil something.
        """
        tests.ranks.assert_clean_parent()
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = RunFolder.of(config)
        self.log = folder / f"{config.name}.log"
        file = folder / f"{config.name}.yaml"
        file.write_text(yaml.safe_dump(to_mapping(config)))
        context = multiprocessing.get_context("fork")
        port = _free_port()
        self._processes = [
            context.Process(
                target=_main,
                args=([str(file), *(settings or {}).get(rank, ())], self.log),
                kwargs={"rank": rank, "world_size": world_size, "port": port, "prepare": prepare},
            )
            for rank in range(world_size)
        ]
        for process in self._processes:
            process.start()

    def wait(self, timeout_s: float = 120) -> list[int]:
        """Return the exit codes."""
        for process in self._processes:
            process.join(timeout_s)
            if process.is_alive():
                self.signal(9)
                raise AssertionError(f"still running after {timeout_s} s:\n{self.output}")
        return [process.exitcode for process in self._processes]

    def wait_until(self, condition: Callable[[], Any], timeout_s: float = 120) -> None:
        """Wait for something to become true while the processes run."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            alive = all(process.is_alive() for process in self._processes)
            assert alive, f"ended early:\n{self.output}"
            assert time.monotonic() < deadline, f"nothing within {timeout_s} s:\n{self.output}"
            time.sleep(0.005)

    def signal(self, number: int) -> None:
        """Send a signal to every process that is alive."""
        for process in self._processes:
            if process.is_alive():
                os.kill(process.pid, number)

    @property
    def pids(self) -> list[int]:
        """Return the process ids, by rank."""
        return [process.pid for process in self._processes]

    @property
    def output(self) -> str:
        """Return what all processes have printed."""
        return self.log.read_text() if self.log.exists() else ""


def last_step(folder: RunFolder) -> int:
    """Return the last step that was logged."""
    return max((record["step"] for record in read_records(folder.metrics)), default=0)


def _main(
    arguments: list[str],
    log: Path,
    *,
    rank: int,
    world_size: int,
    port: int,
    prepare: Callable[[int], None] | None,
) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    if world_size > 1:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    if prepare is not None:
        prepare(rank)
    code = main_train(arguments)
    multiprocessing.util._exit_function()  # ends helper processes of checkpoint writers
    sys.stdout.flush()
    os._exit(code)


def _free_port() -> int:
    """Return a port below those that the kernel gives to other sockets in between."""
    while True:
        port = random.randint(20_000, 32_000)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
