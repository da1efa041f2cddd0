# SPDX-License-Identifier: Apache-2.0
"""`python -m bt_megatron train`: the outermost frame of every training process."""

import argparse
import fcntl
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NoReturn

from bt_megatron.config.arguments import add_run_arguments
from bt_megatron.config.banner import plan_lines
from bt_megatron.config.load import LoadedConfig, load_run
from bt_megatron.config.plan import Plan, make_plan
from bt_megatron.errors import BtError, BusyError, ConfigError
from bt_megatron.observe.console import Console
from bt_megatron.training.stop import EXIT_STOPPED, StopRequest


def main_train(argv: Sequence[str]) -> int:
    """Train one run; one such process per GPU, started by torchrun or srun, or just one.

    Args:
        argv: arguments after `train`.

    Returns:
        Exit code: 0 complete, 75 stopped and saved, others by class of error (errors.py).
    """
    arguments = _parser().parse_args(argv)
    stop = StopRequest()  # from here on: a signal during the start must not end the process
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    console = Console(enabled=rank == 0)
    try:
        loaded = load_run(arguments.files, arguments.settings)
        plan = make_plan(loaded.config, world_size)
        for line in plan_lines(plan, loaded.config):
            console.note(line)
        with _lock(Path(loaded.config.run_dir), rank):
            return _train(loaded, plan, rank, stop=stop, resume_allow=arguments.resume_allow)
    except BtError as error:
        _leave(
            f"error: {error}" if rank == 0 else f"error on rank {rank}: {error}", error.exit_code
        )
    except KeyboardInterrupt:
        _leave("interrupted; the newest checkpoint is whole, start again to resume it", 130)
    except BaseException:  # the outermost frame (torch's CheckpointException is no Exception)
        _leave(f"rank {rank} failed:\n{traceback.format_exc()}", 1)


def _train(
    loaded: LoadedConfig,
    plan: Plan,
    rank: int,
    *,
    stop: StopRequest,
    resume_allow: Sequence[str],
) -> int:
    # Late: importing Megatron takes seconds, and a wrong configuration is told at once.
    from bt_megatron.parallel import cpu_backend

    _quiet_libraries()
    cpu_backend.install()
    import torch

    from bt_megatron.faults.watch import Watch
    from bt_megatron.parallel.groups import stop_processes
    from bt_megatron.training.loop import train
    from bt_megatron.training.run import build_run

    console = Console(enabled=rank == 0, device="gpu" if torch.cuda.is_available() else "cpu")
    with Watch() as watch:
        run = build_run(loaded, plan, console, stop=stop, watch=watch, resume_allow=resume_allow)
        if run.step:
            console.note(f"resumed at step {run.step} of {plan.steps}")
        ended = train(run)
        run.batches.close()
        if run.reporter is not None:
            reason = run.stop.signal_name or "another process was asked to stop"
            complete = ended == "complete"
            run.reporter.close(
                step=run.step,
                status="FINISHED" if complete else "KILLED",
                reason=ended if complete else reason,
            )
            console.note(f"{ended} at step {run.step} of {plan.steps} in {run.folder.path}")
        stop_processes()
    return 0 if ended == "complete" else EXIT_STOPPED


def _quiet_libraries() -> None:
    """Keep what libraries tell their own developers out of the run's console."""
    warnings.filterwarnings("ignore", module="megatron")
    warnings.filterwarnings("ignore", category=SyntaxWarning)  # of files compiled at import
    warnings.filterwarnings("ignore", module="transformer_engine")
    logging.getLogger("megatron").setLevel(logging.ERROR)


class _lock:  # noqa: N801  a context manager, used like a function
    """Hold the run folder: two trainings in one folder would destroy it."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._path = folder / "run.lock"
        self._rank = rank
        self._file: IO[str] | None = None

    def __enter__(self) -> None:
        if self._rank != 0:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("w")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(
                f"{self._path.parent}: another process is training in this folder. Wait for it, "
                "or choose another --set name=..."
            ) from None
        except OSError as error:
            raise ConfigError(
                f"{self._path.parent}: cannot be written ({error.strerror}). Fix the permissions "
                "or choose another --set runs_dir=..."
            ) from error

    def __exit__(self, *_exc: object) -> None:
        if self._file is not None:
            self._file.close()


def _leave(message: str, code: int) -> NoReturn:
    """End this process now: other ranks may be waiting in a collective that never comes."""
    sys.stdout.flush()
    print(message, file=sys.stderr, flush=True)  # noqa: T201
    os._exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bt_megatron train",
        description="Train a run, or resume it from its newest whole checkpoint.",
        epilog="Several processes: torchrun --nproc-per-node 2 -m bt_megatron train FILE",
    )
    add_run_arguments(parser)
    parser.add_argument(
        "--resume-allow",
        action="append",
        default=[],
        metavar="KEY",
        help="resume although this value differs from the saved run",
    )
    return parser
