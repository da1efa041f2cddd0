# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.bench_checkpoint MODEL`: how long a checkpoint holds training up.

Steps on random tokens are timed between two synchronisations, first without checkpoints, then
from the call that saves until every file is complete. What these steps take beyond as many
undisturbed ones is the stall, whatever causes it: the call itself, waiting for the copy to host
memory, the fork, or kernels that are slower while the copy runs. What the writer itself counts
(`stall_s` of the `saved` event) is given beside it.
"""

import argparse
import gc
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from bt_megatron.checkpoint.manifest import Manifest
from bt_megatron.checkpoint.state import sharded_state
from bt_megatron.checkpoint.writer import CheckpointWriter, Saved
from bt_megatron.config.schema import CheckpointConfig
from bt_megatron.errors import BtError
from bt_megatron.parallel.groups import start_processes, stop_processes
from bt_megatron.training.chunk import gathered_weights
from bt_megatron.training.step import TrainingStep
from bt_megatron.training.step_graph import WARM_UP_STEPS
from tools.benchmark_file import Row, write_benchmark
from tools.layout_run import training_step
from tools.training_cases import Case, read_case
from tools.training_speed import LR, ready_batches

MOST_STEPS = 1_000
"""Steps after which a checkpoint that is still not complete is given up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One checkpoint."""

    stall_s: float
    """Seconds that the steps took beyond as many undisturbed ones."""
    counted_s: float
    """Seconds that the writer counted itself."""
    complete_s: float
    """Seconds from the call until the manifest was there."""
    size_bytes: int
    """All files."""


class Trial:
    """A model in training that is saved now and then."""

    def __init__(self, case: Case, step: TrainingStep, folder: Path) -> None:
        """Prepare; `folder` holds the checkpoints meanwhile."""
        self._step = step
        self._batches = [ready_batches(case.config, step=number) for number in range(2)]
        self._writer = CheckpointWriter(
            folder, CheckpointConfig(keep_last=1), may_update=step.may_update
        )
        self._number = 0

    def take_step(self, before: Callable[[], None] = lambda: None) -> float:
        """Return the seconds of a step with what is done before it.

        Comm: those of training; must be called by all ranks.
        """
        torch.cuda.synchronize()
        start = time.perf_counter()
        before()
        self._step.train(self._batches[self._number % 2], lr=LR)
        self._writer.after_step()
        torch.cuda.synchronize()
        self._number += 1
        return time.perf_counter() - start

    def settle(self) -> None:
        """Do what a run does after its first step."""
        self._writer.reserve(self._state())
        gc.collect()
        gc.freeze()

    def save(self, *, step_s: float) -> Measured:
        """Save once and train on until the checkpoint is complete.

        Args:
            step_s: seconds of an undisturbed step.

        Raises:
            BtError: it is not complete after `MOST_STEPS` steps.

        Comm: those of training and of saving; must be called by all ranks.
        """
        saved: list[Saved] = []
        start = time.perf_counter()
        seconds = [self.take_step(self._start_to_save)]
        while not self._is_complete(saved):
            if len(seconds) == MOST_STEPS:
                raise BtError(f"no checkpoint after {MOST_STEPS} steps: name a faster --folder.")
            seconds.append(self.take_step())
        counted = saved[0].stall_s if saved else 0.0
        return Measured(
            stall_s=sum(seconds) - step_s * len(seconds),
            counted_s=counted,
            complete_s=time.perf_counter() - start,
            size_bytes=saved[0].manifest.size_bytes if saved else 0,
        )

    def _start_to_save(self) -> None:
        with self._writer.stalls.running(), gathered_weights(self._step.chunks):
            manifest = Manifest(
                step=self._number,
                tokens=0,
                config={},
                world_size=dist.get_world_size(),
                data_fingerprint="",
                versions={},
                files={},
            )
            self._writer.save(self._state(), manifest)

    def _state(self) -> dict[str, object]:
        return sharded_state(self._step.chunks, self._step.optimizer, is_loading=False)

    def _is_complete(self, saved: list[Saved]) -> bool:
        """Ask rank 0, which completes checkpoints, so that all ranks take as many steps."""
        found = self._writer.poll()
        saved += [found] if found else []
        answer = torch.tensor([len(saved)], device=torch.cuda.current_device())
        dist.broadcast(answer, src=0)
        return bool(answer.item())


def measure(case: Case, folder: Path, *, saves: int, steps: int) -> tuple[float, list[Measured]]:
    """Return the seconds of an undisturbed step, and what each checkpoint gave.

    Comm: those of training and of saving; must be called by all ranks.
    """
    with training_step(case.config) as step:
        trial = Trial(case, step, folder)
        trial.take_step()
        trial.settle()
        trial.save(step_s=0.0)  # the first one also loads what writing needs
        for _ in range(WARM_UP_STEPS + 2):  # a step may be recorded as a graph meanwhile
            trial.take_step()
        found: list[Measured] = []
        undisturbed: list[float] = []
        for _ in range(saves):
            undisturbed += [trial.take_step() for _ in range(steps)]
            found.append(trial.save(step_s=statistics.median(undisturbed)))
    return statistics.median(undisturbed), found


def rows_of(case: Case, step_s: float, found: Sequence[Measured]) -> list[Row]:
    """Return what is written of a case: the median stall and every single one."""
    name = case.name.removeprefix("train/")
    size = max(one.size_bytes for one in found)
    detail = {
        "case": name,
        "world_size": case.plan.world_size,
        "undisturbed_step_s": step_s,
        "size_gib": size / 2**30,
        "stalls_s": [round(one.stall_s, 4) for one in found],
        "counted_s": [round(one.counted_s, 4) for one in found],
        "complete_s": [round(one.complete_s, 2) for one in found],
    }
    stall = statistics.median(one.stall_s for one in found)
    return [Row(case="checkpoint/stall", metric="seconds", value=stall, unit="s", detail=detail)]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = _parser().parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="bench-checkpoint-", dir=arguments.folder))
    try:
        start_processes()
        case = read_case(arguments.case, world_size=dist.get_world_size())
        shared = [str(folder)]
        dist.broadcast_object_list(shared, src=0)  # all ranks write into rank 0's
        step_s, found = measure(case, Path(shared[0]), saves=arguments.saves, steps=arguments.steps)
        if dist.get_rank() == 0:
            rows = rows_of(case, step_s, found)
            for one in found:
                print(_line(one, step_s))  # noqa: T201
            if arguments.benchmark:
                write_benchmark(arguments.benchmark, rows)
        stop_processes()
    except BtError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def _line(one: Measured, step_s: float) -> str:
    return (
        f"stall {one.stall_s:.3f} s (counted {one.counted_s:.3f} s), steps of {step_s:.3f} s; "
        f"{one.size_bytes / 2**30:.2f} GiB complete after {one.complete_s:.1f} s"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench_checkpoint",
        description="Measure how long a checkpoint holds training up.",
        epilog="example: python -m tools.bench_checkpoint block-1.2b:batch.micro_batch_size=8",
    )
    parser.add_argument("case", metavar="MODEL[:KEY=VALUE,...]", help="as in tools.bench_training")
    parser.add_argument("--saves", type=int, default=5, help="checkpoints (default: 5)")
    parser.add_argument("--steps", type=int, default=5, help="steps between them (default: 5)")
    parser.add_argument("--folder", type=Path, help="where to save (default: a temporary folder)")
    parser.add_argument("--benchmark", type=Path, metavar="FILE", help="write the numbers there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
