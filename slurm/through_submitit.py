# SPDX-License-Identifier: Apache-2.0
"""Runs through submitit: job arrays on Slurm, or processes of this machine. No torch.

submitit starts one task a process, and each task starts the training as a child. What submitit
itself does at a time limit is not used: its signal would reach the child too, and its checkpoint
runs on one rank. Here the ranks get USR1, save together and end with 75; the first task then puts
the job back into the queue.
"""

import os
import signal
import subprocess
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from bt_megatron.errors import LaunchError
from slurm import client
from slurm.cluster import ClusterConfig
from slurm.render import nodes_and_tasks, srun_options

if TYPE_CHECKING:
    import submitit

    from slurm.submit import TrainingJob

STOPPED = 75
"""Exit code of a run that has saved and can be resumed."""


@dataclass(frozen=True, slots=True)
class Launched:
    """One run as submitit started it."""

    job: str
    script: str
    log: str
    pid: int | None
    """local: the process that controls it."""


@dataclass(frozen=True, slots=True)
class TrainingTask:
    """What submitit calls in each process; pickled."""

    command: tuple[str, ...]
    folder: str
    """From which it is run."""

    def __call__(self) -> int:
        """Train, and requeue after a time limit.

        Raises:
            LaunchError: the training has failed.
        """
        import submitit

        environment = submitit.JobEnvironment()
        child: subprocess.Popen[bytes] | None = None

        def forward(number: int, _frame: FrameType | None) -> None:
            if child is not None:
                child.send_signal(number)

        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, forward)
        child = subprocess.Popen(self.command, cwd=self.folder, env=_rank_variables(environment))
        code = child.wait()
        if code == STOPPED and environment.global_rank == 0 and environment.name() == "slurm":
            environment._requeue(countdown=0)
        if code not in (0, STOPPED):
            raise LaunchError(f"the training ended with exit code {code}; see the lines above")
        return code


def launch(
    jobs: "Sequence[TrainingJob]", *, via: str, at_once: int | None = None
) -> list[Launched]:
    """Start runs.

    Args:
        jobs: on one cluster and of one size, if there are several.
        via: submitit, for a job array on Slurm, or local.
        at_once: submitit: tasks of the array that may run at the same time.

    Raises:
        LaunchError: they cannot be started.
    """
    if len({(job.cluster, job.plan.world_size) for job in jobs}) > 1:
        raise LaunchError("runs of one job array need one cluster and one number of processes.")
    executor = _executor(jobs[0], via=via, at_once=at_once or len(jobs))
    tasks = [
        TrainingTask(
            (job.cluster.python, "-m", "bt_megatron", "train", *job.arguments),
            str(Path.cwd()),
        )
        for job in jobs
    ]
    if len(tasks) == 1:
        started = [executor.submit(tasks[0])]
    else:
        with executor.batch():
            started = [executor.submit(task) for task in tasks]
    return [
        Launched(
            job=job.job_id,
            script=str(job.paths.submission_file),
            log=str(job.paths.stdout),
            pid=getattr(getattr(job, "_process", None), "pid", None),
        )
        for job in started
    ]


def _executor(job: "TrainingJob", *, via: str, at_once: int) -> "submitit.AutoExecutor":
    import submitit

    if via == "submitit" and not client.is_available():
        raise LaunchError("sbatch is not installed here. Run on this machine with --via local.")
    nodes, tasks = nodes_and_tasks(job.cluster, job.plan.world_size)
    folder = job.records.path / "submitit"
    executor = submitit.AutoExecutor(folder, cluster="slurm" if via == "submitit" else "local")
    if via == "local" and nodes > 1:
        raise LaunchError(
            f"{job.plan.world_size} processes are {nodes} nodes of this cluster; --via local has "
            f"one machine. Use --gpus {job.cluster.gpus_per_node} or fewer."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        executor.update_parameters(
            name=job.config.name,
            nodes=nodes,
            tasks_per_node=tasks,
            cpus_per_task=job.cluster.cpus_per_gpu,
            gpus_per_node=tasks if via == "submitit" else 0,
            timeout_min=job.cluster.time_limit_minutes if via == "submitit" else 60 * 24 * 365,
        )
        if via == "submitit":
            executor.update_parameters(**_slurm_parameters(job.cluster, tasks, at_once=at_once))
    return executor


def _slurm_parameters(cluster: ClusterConfig, tasks: int, *, at_once: int) -> dict[str, object]:
    """Return what submitit is told of a cluster."""
    gpu_type = f"{cluster.gpu_type}:" if cluster.gpu_type else ""
    more: dict[str, object] = {
        "signal": f"USR1@{cluster.stop_before_limit_s}",
        "gpus_per_node": f"{gpu_type}{tasks}",
        "requeue" if cluster.next_job == "requeue" else "no-requeue": True,
    }
    if cluster.memory_per_gpu_gb is not None:
        more["mem"] = f"{tasks * cluster.memory_per_gpu_gb}G"
    more |= {
        key: value
        for key in ("partition", "account", "qos", "reservation")
        if (value := getattr(cluster, key))
    }
    return {
        "slurm_array_parallelism": at_once,
        "slurm_setup": cluster.setup.strip().splitlines(),
        "slurm_srun_args": ["--kill-on-bad-exit=1", *srun_options(cluster)],
        "slurm_additional_parameters": more,
    }


def _rank_variables(environment: "submitit.JobEnvironment") -> dict[str, str]:
    """Return the environment of a training process."""
    is_local = environment.name() == "local"
    return os.environ | {
        "RANK": str(environment.global_rank),
        "WORLD_SIZE": str(environment.num_tasks),
        "LOCAL_RANK": str(environment.local_rank),
        "MASTER_ADDR": "127.0.0.1" if is_local else environment.hostnames[0],
        "MASTER_PORT": str(20_000 + int(environment.raw_job_id) * 97 % 12_000),
        "PYTHONUNBUFFERED": "1",
    }
