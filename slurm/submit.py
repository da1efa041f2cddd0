# SPDX-License-Identifier: Apache-2.0
"""Submitting runs: by the project's own sbatch script, by submitit, or on this machine. No torch.

job = TrainingJob.load(["configs/run/demo.yaml"], cluster=load_cluster("my.yaml"), processes=2)
(submitted,) = submit([job], via="sbatch")
"""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bt_megatron.config.load import load_run
from bt_megatron.config.plan import Plan, make_plan
from bt_megatron.config.schema import RunConfig
from bt_megatron.errors import ConfigError, LaunchError
from bt_megatron.observe.atomic_file import write_atomically
from bt_megatron.observe.run_folder import RunFolder
from slurm import client
from slurm.cluster import ClusterConfig
from slurm.records import Job, Records
from slurm.render import nodes_and_tasks, render

Via = Literal["sbatch", "submitit", "local"]


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """A run and where it is to be trained; checked as far as this machine can."""

    config: RunConfig
    cluster: ClusterConfig
    plan: Plan
    arguments: tuple[str, ...]
    """Of `python -m bt_megatron train`."""

    @classmethod
    def load(
        cls,
        files: Sequence[str | Path],
        settings: Sequence[str] = (),
        *,
        cluster: ClusterConfig,
        processes: int | None = None,
    ) -> "TrainingJob":
        """Load a run and check that its layout fits the processes, and these the nodes.

        Args:
            files: YAML files of the run, composed left to right.
            settings: `a.b=c`, applied last.
            cluster: where.
            processes: GPUs in all; none: one whole node.

        Raises:
            ConfigError: the configuration cannot be meant.
            LayoutError: it does not fit the processes, or they do not fill whole nodes.
        """
        config = load_run(files, settings).config
        plan = make_plan(config, processes or cluster.gpus_per_node)
        nodes_and_tasks(cluster, plan.world_size)
        words = [word for setting in settings for word in ("--set", setting)]
        return cls(config, cluster, plan, (*map(str, files), *words))

    @property
    def script(self) -> str:
        """The sbatch script."""
        return render(self.config, self.cluster, self.plan, arguments=self.arguments)

    @property
    def records(self) -> Records:
        """Where submissions of this run are noted."""
        return Records(RunFolder.of(self.config))


@dataclass(frozen=True, slots=True)
class Submitted:
    """What was submitted, and where to look."""

    job: str
    via: Via
    run_dir: str
    script: str
    """What Slurm was given."""
    log: str
    """Of the job; the ranks' are in <run_dir>/logs/latest."""
    starts: str = ""
    """sbatch: when and where, as Slurm expects."""


def submit(
    jobs: Sequence[TrainingJob], *, via: Via = "sbatch", at_once: int | None = None
) -> list[Submitted]:
    """Submit runs.

    Args:
        jobs: the runs. By submitit they become one job array and must be on one cluster and of
            one size.
        via: sbatch, the project's own script, for runs that take more than one job; submitit,
            for arrays of short runs; local, processes of this machine, all at once.
        at_once: submitit: tasks of the array that may run at the same time; none: all.

    Returns:
        One for each run, in their order.

    Raises:
        LaunchError: Slurm refuses a job, or a run has one already.
    """
    _require_distinct(jobs)
    for job in jobs:
        _require_idle(job.records)
    for job in jobs:
        keep_script(job)
    if via == "sbatch":
        starts = [client.validate(job.records.script) for job in jobs]  # all, before the first
        return [_sbatch(job, start) for job, start in zip(jobs, starts, strict=True)]
    from slurm.through_submitit import launch  # late: importing submitit takes a second

    launched = launch(jobs, via=via, at_once=at_once)
    for job, one in zip(jobs, launched, strict=True):
        job.records.add_job(Job(one.job, via, pid=one.pid))
    return [
        Submitted(one.job, via, job.config.run_dir, one.script, one.log)
        for job, one in zip(jobs, launched, strict=True)
    ]


def keep_script(job: TrainingJob) -> None:
    """Write the script and the state of the code into the run folder.

    Raises:
        LaunchError: the folder cannot be written.
    """
    records = job.records
    try:
        records.path.mkdir(parents=True, exist_ok=True)
        records.stop.unlink(missing_ok=True)
        records.fruitless.unlink(missing_ok=True)
        write_atomically(records.script, job.script.encode())
        write_atomically(records.path / "code.diff", _changes().encode())
    except OSError as error:
        raise LaunchError(
            f"{records.path}: cannot be written ({error.strerror}). Fix the permissions or choose "
            "another --set runs_dir=..."
        ) from error


def submit_script(records: Records, *options: str) -> str:
    """Submit the script that is kept in a run folder and return the number of the job.

    Raises:
        LaunchError: Slurm refuses it.
    """
    job = client.sbatch(records.script, *options)
    records.add_job(Job(job, "sbatch"))
    return job


def live_job(records: Records) -> client.JobState | None:
    """Return the newest job of a run if it may still run."""
    jobs = records.jobs()
    if not jobs or jobs[-1].via == "local":
        return None
    state = client.job_states([jobs[-1].job])[jobs[-1].job]
    ended = ("GONE", "COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL")
    return None if state.state in (*ended, "BOOT_FAIL", "DEADLINE", "PREEMPTED") else state


def _sbatch(job: TrainingJob, starts: str) -> Submitted:
    records = job.records
    number = submit_script(records)
    run_dir = job.config.run_dir
    log = f"{run_dir}/slurm/job-{number}.log"
    return Submitted(number, "sbatch", run_dir, str(records.script), log, starts)


def _require_distinct(jobs: Sequence[TrainingJob]) -> None:
    folders = [job.config.run_dir for job in jobs]
    twice = sorted({folder for folder in folders if folders.count(folder) > 1})
    if twice:
        raise ConfigError(f"{', '.join(twice)}: two runs have this folder. Give them other names.")


def _require_idle(records: Records) -> None:
    state = live_job(records)
    if state is not None and state.state != "UNKNOWN":
        raise LaunchError(
            f"{records.folder.path}: job {state.job_id} of this run is {state.state}. Wait for it, "
            f"cancel it (python -m slurm cancel {records.folder.path}), or choose another "
            "--set name=..."
        )


def _changes() -> str:
    """Return what differs from the commit, as git sees it; the commit itself is in plan.json."""
    try:
        command = ["git", "diff", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
