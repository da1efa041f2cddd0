# SPDX-License-Identifier: Apache-2.0
"""A rank that dies or hangs in NCCL, or inside of a kernel. One GPU is enough.

Two ranks share it: NCCL refuses that only for ranks of one machine, so each is told
another host name and they talk over the loopback interface.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from bt_megatron.config.load import to_mapping
from bt_megatron.config.schema import (
    CheckpointConfig,
    EvaluationConfig,
    FaultConfig,
    RunConfig,
    TrainConfig,
)
from bt_megatron.observe.jsonl import read_records
from bt_megatron.observe.run_folder import RunFolder
from tests.tiny_run import tiny_run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

NEVER = 1_000_000
START_S = 180
DEFAULTS = FaultConfig()
ENDS_WITHIN_S = 60

HANG_IN_A_KERNEL = """
import sys, torch
from bt_megatron.parallel import cpu_backend
cpu_backend.install()
from bt_megatron.training import step
original, calls = step._forward, 0
def hang(batches, chunk):
    global calls
    calls += 1
    if calls == 41:
        torch.cuda._sleep(1 << 60)
        torch.cuda.synchronize()
    return original(batches, chunk)
step._forward = hang
from bt_megatron.training.command import main_train
sys.exit(main_train(sys.argv[1:]))
"""


class Ranks:
    """Two ranks on one GPU."""

    def __init__(self, config: RunConfig, folder: Path, *, program: str | None = None) -> None:
        file = folder / "run.yaml"
        file.write_text(yaml.safe_dump(to_mapping(config)))
        self.log, self.folder = folder / "log", RunFolder.of(config)
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        common |= {"LOCAL_RANK": "0", "NCCL_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
        usual = [sys.executable, "-m", "bt_megatron", "train", str(file)]
        spoiled = [sys.executable, "-c", program or "", str(file)]
        self.processes = []
        for rank in range(2):
            own = {"RANK": str(rank), "NCCL_HOSTID": f"host-{rank}"}
            self.processes.append(
                subprocess.Popen(
                    spoiled if program and rank == 1 else usual,
                    stdout=self.log.open("ab"),
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **common, **own},
                )
            )

    def wait_for_step(self, step: int) -> None:
        deadline = time.monotonic() + START_S
        while max((r["step"] for r in read_records(self.folder.metrics)), default=0) < step:
            assert all(p.poll() is None for p in self.processes), self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def codes(self) -> list[int]:
        """Return the exit codes of ranks that end within a minute."""
        deadline = time.monotonic() + ENDS_WITHIN_S
        return [process.wait(deadline - time.monotonic()) for process in self.processes]

    @property
    def error(self) -> str:
        (line,) = [x for x in self.log.read_text().splitlines() if x.startswith("error:")]
        return line


@pytest.fixture
def start(tiny_data, tmp_path):
    started = []

    def start_ranks(program: str | None = None) -> Ranks:
        config = tiny_run(
            tiny_data,
            tmp_path / "runs",
            train=TrainConfig(steps=NEVER, precision="bf16"),
            checkpoint=CheckpointConfig(interval_steps=NEVER),
            evaluation=EvaluationConfig(interval_steps=NEVER),
            faults=DEFAULTS,
        )
        started.append(Ranks(config, tmp_path, program=program))
        return started[-1]

    yield start_ranks
    for ranks in started:
        for process in ranks.processes:
            process.kill()
            process.wait()


@pytest.mark.parametrize("culprit", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_dies_is_named(number, culprit, start):
    ranks = start()
    ranks.wait_for_step(5)
    ranks.processes[culprit].send_signal(number)

    expected = [8, 8]
    expected[culprit] = -signal.SIGKILL
    assert ranks.codes() == expected, ranks.log.read_text()
    assert f"rank {culprit} (pid {ranks.processes[culprit].pid} on " in ranks.error
    assert re.search(rf"; rank {1 - culprit} is in \w+ over ranks 0-1 of step \d+", ranks.error)


def test_a_rank_that_hangs_in_a_kernel_is_named(start):
    ranks = start(HANG_IN_A_KERNEL)

    ranks.wait_for_step(5)
    assert ranks.codes() == [8, 8], ranks.log.read_text()
    assert f"rank 1 (pid {ranks.processes[1].pid} on " in ranks.error
    assert "hangs: in step" in ranks.error
    assert "synchronize" in (ranks.folder.faults / "rank_0001.txt").read_text()
