# SPDX-License-Identifier: Apache-2.0
"""A rank that dies or hangs: the others stop soon, name it, and leave nothing behind."""

import os
import re
import signal
import time
from pathlib import Path

import psutil
import pytest
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue

from bt_megatron.config.schema import (
    BatchConfig,
    CheckpointConfig,
    EvaluationConfig,
    FaultConfig,
    LayoutConfig,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
)
from bt_megatron.data.prefetch import PrefetchedBatches
from bt_megatron.errors import DataError, RankError
from bt_megatron.training import run
from bt_megatron.training import step as training_step
from bt_megatron.training.step import TrainingStep
from tests.tiny_run import tiny_run
from tests.training_process import Training, last_step

NEVER = 1_000_000
SOON = FaultConfig(dead_rank_seconds=6, hung_rank_seconds=6)
DIES_WITHIN_S = 15
"""A process that has ended is noticed at once; two seconds are for collecting signs."""
HANGS_WITHIN_S = 30
"""The limits of SOON, and time for a busy machine."""
STOPPED = RankError.exit_code
HANG_AT = 4


def endless_run(data: Path, folder: Path, **changes: object) -> RunConfig:
    endless = {
        "train": TrainConfig(steps=NEVER, precision="fp32"),
        "batch": BatchConfig(global_batch_size=6, micro_batch_size=1),
        "checkpoint": CheckpointConfig(interval_steps=NEVER),
        "evaluation": EvaluationConfig(interval_steps=NEVER),
    }
    return tiny_run(data, folder / "runs", **{**endless, **changes})


def end_of(training: Training, *, within_s: float) -> list[int]:
    """Return the exit codes, having checked how long it took and that no process is left."""
    ranks = [psutil.Process(pid) for pid in training.pids]
    processes = ranks + [child for rank in ranks for child in rank.children(recursive=True)]
    assert len(processes) > len(ranks), "the ranks have helper processes"
    codes = training.wait(within_s)
    psutil.wait_procs(processes, timeout=5)
    left = [process for process in processes if process.is_running()]
    assert left == [], training.output
    return codes


def kill(training: Training, rank: int, number: int = signal.SIGKILL) -> list[int]:
    """Send a signal in the middle of training; return the exit codes.

    After a second of training at least: what is last known of a rank is as old as a report.
    """
    training.wait_until(lambda: last_step(training.folder) >= 3)
    time.sleep(1)
    os.kill(training.pids[rank], number)
    return end_of(training, within_s=HANGS_WITHIN_S if number == signal.SIGSTOP else DIES_WITHIN_S)


def codes_of(world_size: int, culprit: int) -> list[int]:
    """Return the exit codes of a run in which one rank was killed."""
    return [-signal.SIGKILL if rank == culprit else STOPPED for rank in range(world_size)]


def the_error(training: Training) -> str:
    """Return the one line that names the fault."""
    (line,) = [line for line in training.output.splitlines() if line.startswith("error:")]
    return line


LAYOUTS = {
    "dp2": (2, LayoutConfig()),
    "tp2-sp": (2, LayoutConfig(tp=2, sequence_parallel=True)),
    "pp2": (2, LayoutConfig(pp=2)),
    "dp3": (3, LayoutConfig()),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_killed_rank_is_named_at_once(name: str, tiny_data: Path, tmp_path: Path) -> None:
    world_size, layout = LAYOUTS[name]
    culprit = world_size - 1
    config = endless_run(tiny_data, tmp_path, layout=layout)
    training = Training(config, tmp_path, world_size=world_size)

    assert kill(training, culprit) == codes_of(world_size, culprit), training.output
    error = the_error(training)
    assert f"rank {culprit} (pid {training.pids[culprit]} on " in error
    assert "is gone (the process has ended): last seen in step " in error
    assert re.search(r"; ranks? [0-9-]+ (is|are) in \w+ (over ranks 0-|from rank )", error)
    assert re.search(r"of step \d+ \('step'\) since", error)
    assert "Traceback" not in training.output
    for rank in range(culprit):
        text = (training.folder.faults / f"rank_{rank:04d}.txt").read_text()
        assert error.removeprefix("error: ") in text
        assert "training/loop.py" in text, "where the main thread was"


def test_a_killed_rank_0_is_named_by_the_others(tiny_data: Path, tmp_path: Path) -> None:
    training = Training(endless_run(tiny_data, tmp_path), tmp_path, world_size=3)

    assert kill(training, 0) == codes_of(3, 0), training.output
    assert f"rank 0 (pid {training.pids[0]} on " in the_error(training)
    assert f"rank 2 stops: rank 0 (pid {training.pids[0]} on " in training.output


@pytest.mark.parametrize("culprit", [0, 1])
def test_a_stopped_rank_is_named_and_ended(culprit: int, tiny_data: Path, tmp_path: Path) -> None:
    training = Training(endless_run(tiny_data, tmp_path, faults=SOON), tmp_path, world_size=2)

    assert kill(training, culprit, signal.SIGSTOP) == codes_of(2, culprit), training.output
    error = the_error(training)
    assert f"rank {culprit} (pid {training.pids[culprit]} on " in error
    assert "does not answer since" in error
    assert f"; rank {1 - culprit} is in " in error


def test_a_short_pause_disturbs_nobody(tiny_data: Path, tmp_path: Path) -> None:
    config = endless_run(
        tiny_data, tmp_path, faults=SOON, train=TrainConfig(steps=30, precision="fp32")
    )
    training = Training(config, tmp_path, world_size=2)
    training.wait_until(lambda: last_step(training.folder) >= 3)
    os.kill(training.pids[1], signal.SIGSTOP)
    time.sleep(3)
    os.kill(training.pids[1], signal.SIGCONT)

    assert end_of(training, within_s=60) == [0, 0], training.output


def test_a_suspended_job_goes_on(tiny_data: Path, tmp_path: Path) -> None:
    config = endless_run(
        tiny_data, tmp_path, faults=SOON, train=TrainConfig(steps=30, precision="fp32")
    )
    training = Training(config, tmp_path, world_size=2)
    training.wait_until(lambda: last_step(training.folder) >= 3)
    training.signal(signal.SIGSTOP)
    time.sleep(2 * SOON.dead_rank_seconds)
    training.signal(signal.SIGCONT)

    assert end_of(training, within_s=60) == [0, 0], training.output


def hang_before_the_data(rank: int) -> None:
    original = PrefetchedBatches.__next__

    def hang(batches):
        while rank == 1 and batches.step == HANG_AT - 1:
            time.sleep(0.1)
        return original(batches)

    PrefetchedBatches.__next__ = hang


def hang_before_the_step(rank: int) -> None:
    original = TrainingStep.train
    calls = 0

    def hang(training, batches, **keywords):
        nonlocal calls
        calls += 1
        while rank == 1 and calls == HANG_AT:
            pass  # never waits, never lets go of the interpreter by itself
        return original(training, batches, **keywords)

    TrainingStep.train = hang


def hang_within_the_step(rank: int) -> None:
    original = training_step._forward
    calls = 0

    def hang(batches, chunk):
        nonlocal calls
        calls += 1
        while rank == 1 and calls == 10:
            time.sleep(0.1)
        return original(batches, chunk)

    training_step._forward = hang


@pytest.mark.parametrize(
    ("prepare", "layout", "world_size", "phase"),
    [
        (hang_before_the_data, LayoutConfig(), 3, "data"),
        (hang_before_the_step, LayoutConfig(), 2, "step"),
        (hang_within_the_step, LayoutConfig(pp=2), 2, "step"),
        (hang_within_the_step, LayoutConfig(tp=2), 2, "step"),
    ],
    ids=["data-dp3", "loop-dp2", "micro-batch-pp2", "micro-batch-tp2"],
)
def test_a_hung_rank_is_named(prepare, layout, world_size, phase, tiny_data, tmp_path) -> None:
    config = endless_run(tiny_data, tmp_path, faults=SOON, layout=layout)
    training = Training(config, tmp_path, world_size=world_size, prepare=prepare)
    training.wait_until(lambda: last_step(training.folder) >= 1)

    codes = end_of(training, within_s=HANGS_WITHIN_S)
    assert codes == [STOPPED] * world_size, training.output
    error = the_error(training)
    assert f"rank 1 (pid {training.pids[1]} on " in error
    assert f"hangs: in step {HANG_AT if layout.pp * layout.tp == 1 else 2} ('{phase}')" in error
    stack = (training.folder.faults / "rank_0001.txt").read_text()
    assert "in hang\n" in stack, "the stack shows where it hangs"


def fail_at_the_data(rank: int) -> None:
    original = PrefetchedBatches.__next__

    def fail(batches):
        if rank == 1 and batches.step == HANG_AT - 1:
            raise DataError("shard 3 is damaged. Copy it again.")
        return original(batches)

    PrefetchedBatches.__next__ = fail


def test_an_error_of_one_rank_ends_all_with_its_code(tiny_data: Path, tmp_path: Path) -> None:
    config = endless_run(tiny_data, tmp_path)
    training = Training(config, tmp_path, world_size=3, prepare=fail_at_the_data)
    training.wait_until(lambda: last_step(training.folder) >= 1)

    assert end_of(training, within_s=DIES_WITHIN_S) == [4, 4, 4], training.output
    assert "error on rank 1: shard 3 is damaged. Copy it again." in training.output
    assert "has left in step 4 ('data'): shard 3 is damaged" in the_error(training)
    assert "Traceback" not in training.output


def test_an_error_of_all_ranks_is_told_by_each(tiny_data: Path, tmp_path: Path) -> None:
    optimizer = OptimizerConfig(lr=1e30, warmup_steps=9)
    config = endless_run(tiny_data, tmp_path, optimizer=optimizer)
    training = Training(config, tmp_path, world_size=2)

    assert training.wait(60) == [9, 9], training.output
    assert "error: step" in training.output
    assert "error on rank 1: step" in training.output
    assert "stops:" not in training.output


def write_for_ever(_rank: int) -> None:
    original = AsyncCallsQueue.schedule_async_request

    def schedule(queue, request):
        return original(queue, request._replace(async_fn=lambda *_: time.sleep(NEVER)))

    AsyncCallsQueue.schedule_async_request = schedule


def test_checkpoint_writers_end_with_their_rank(tiny_data: Path, tmp_path: Path) -> None:
    config = endless_run(tiny_data, tmp_path, checkpoint=CheckpointConfig(interval_steps=2))
    training = Training(config, tmp_path, world_size=2, prepare=write_for_ever)
    training.wait_until(lambda: last_step(training.folder) >= 3)
    helpers = [len(psutil.Process(pid).children(recursive=True)) for pid in training.pids]
    assert helpers == [2, 2], "a report queue and a writer"

    assert kill(training, 1) == codes_of(2, 1), training.output


def test_another_configuration_is_named_on_every_rank(tiny_data: Path, tmp_path: Path) -> None:
    config = endless_run(tiny_data, tmp_path)
    settings = {1: ["--set", "optimizer.lr=0.002"]}
    training = Training(config, tmp_path, world_size=2, settings=settings)

    assert training.wait(60) == [2, 2], training.output
    expected = (
        "rank 1 runs another configuration than rank 0: optimizer.lr 0.003 (rank 0) vs 0.002 "
        "(rank 1)"
    )
    assert f"error: {expected}" in training.output
    assert f"error on rank 1: {expected}" in training.output
    assert not training.folder.plan.exists()


def stay_away(rank: int) -> None:
    original = run.read_versions

    def read_versions():
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return original()

    run.read_versions = read_versions


def test_a_rank_that_dies_before_it_says_what_it_runs_is_named(
    tiny_data: Path, tmp_path: Path
) -> None:
    training = Training(endless_run(tiny_data, tmp_path), tmp_path, world_size=2, prepare=stay_away)

    assert training.wait(DIES_WITHIN_S) == codes_of(2, 1), training.output
    assert f"rank 1 (pid {training.pids[1]} on " in the_error(training)
    assert "is gone" in the_error(training)
    assert "in 'start'" in the_error(training)
