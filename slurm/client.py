# SPDX-License-Identifier: Apache-2.0
"""The only place that runs Slurm's own commands from Python. No torch.

Every call has a time limit, and a call that fails means "unknown", never "gone": a busy
controller resets connections.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bt_megatron.errors import LaunchError

TIMEOUT_S = 60.0

REMEDIES = (
    (r"invalid partition", "partition", "sinfo -s lists the partitions"),
    (r"account", "account", "sacctmgr show assoc user=$USER lists your accounts"),
    (r"qos", "qos", "sacctmgr show qos lists them"),
    (r"reservation", "reservation", "scontrol show reservation lists them"),
    (r"memory", "memory_per_gpu_gb", "sinfo -o '%P %m' shows the MB of each node"),
    (r"time limit", "time_limit_minutes", "sinfo -o '%P %l' shows the longest of each partition"),
    (
        r"node configuration|gres|more processors|node count",
        "gpus_per_node, gpu_type, cpus_per_gpu, memory_per_gpu_gb, or the processes (--gpus)",
        "sinfo -o '%P %D %c %m %G' shows what the nodes have",
    ),
)
"""What sbatch says, the keys of the cluster file to look at, and how to find the right value."""


@dataclass(frozen=True, slots=True)
class JobState:
    """One job as squeue shows it."""

    job_id: str
    state: str
    """RUNNING, PENDING, ...; UNKNOWN if Slurm did not answer, GONE if it has forgotten the job."""
    reason: str = ""
    """Why it waits, or its nodes."""
    nodes: str = ""
    time_left: str = ""


def validate(script: Path) -> str:
    """Ask Slurm whether it would take a script, without submitting it.

    Returns:
        When and where it would start.

    Raises:
        LaunchError: it would not, with the rule and what to change.
    """
    done = _run(["sbatch", "--test-only", str(script)])
    if done.returncode:
        raise LaunchError(explain_refusal(done.stderr))
    return done.stderr.strip().removeprefix("sbatch: ")


def sbatch(script: Path, *options: str) -> str:
    """Submit a script and return the number of the job.

    Raises:
        LaunchError: Slurm refuses it.
    """
    done = _run(["sbatch", "--parsable", *options, str(script)])
    if done.returncode:
        raise LaunchError(explain_refusal(done.stderr))
    return done.stdout.strip().split(";")[0]


def job_states(job_ids: Sequence[str]) -> dict[str, JobState]:
    """Return the state of jobs, in one call."""
    states = {job_id: JobState(job_id, "UNKNOWN") for job_id in job_ids}
    if not job_ids or not is_available():
        return states
    columns = ["--noheader", "--array", "--states=all", "--format=%i|%T|%R|%N|%L"]
    try:
        done = _run(["squeue", *columns, f"--jobs={','.join(job_ids)}"])
    except LaunchError:
        return states
    if done.returncode:
        gone = "Invalid job id" in done.stderr
        return {key: JobState(key, "GONE" if gone else "UNKNOWN") for key in job_ids}
    found = [line.split("|") for line in done.stdout.splitlines()]
    listed = {fields[0]: JobState(*fields) for fields in found}
    return {key: listed.get(key, JobState(key, "GONE")) for key in job_ids}


def scancel(job_id: str, *options: str) -> None:
    """Cancel or signal a job.

    Raises:
        LaunchError: Slurm does not do it.
    """
    done = _run(["scancel", *options, job_id])
    if done.returncode:
        raise LaunchError(f"job {job_id}: {_words(done.stderr)}")


def release(job_id: str) -> None:
    """Let a job run that Slurm holds, e.g. after it could not be started.

    Raises:
        LaunchError: Slurm does not do it.
    """
    done = _run(["scontrol", "release", job_id])
    if done.returncode:
        raise LaunchError(f"job {job_id}: {_words(done.stderr)}")


def is_available() -> bool:
    """Whether Slurm's commands are installed here."""
    return shutil.which("sbatch") is not None


def outer_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment without what Slurm set for a job that this process runs in."""
    environment = os.environ if environment is None else environment
    inner = ("SLURM_", "SRUN_", "SBATCH_", "SUBMITIT_")
    return {
        key: value
        for key, value in environment.items()
        if key == "SLURM_CONF" or not key.startswith(inner)
    }


def _run(command: list[str]) -> "subprocess.CompletedProcess[str]":
    if not is_available():
        raise LaunchError(
            f"{command[0]} is not installed here. Submit from a login node of the cluster, or run "
            "on this machine with --via local."
        )
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, env=outer_environment()
        )
    except subprocess.TimeoutExpired as error:
        raise LaunchError(
            f"{command[0]} has not answered within {TIMEOUT_S:.0f} s. Ask `scontrol ping` whether "
            "the controller runs, and try again; nothing is known to be submitted."
        ) from error


def explain_refusal(stderr: str) -> str:
    """Say why sbatch refuses a job, which keys to look at, and how to find the right values."""
    said = _words(stderr)
    for pattern, keys, lookup in REMEDIES:
        if re.search(pattern, said, re.IGNORECASE):
            return f"Slurm refuses the job: {said}. Change {keys} in the cluster file; {lookup}."
    return f"Slurm refuses the job: {said}."


def _words(stderr: str) -> str:
    """Return what a command said, on one line and without its own name."""
    lines = [re.sub(r"^\w+: (error: )?", "", line).strip() for line in stderr.splitlines()]
    return "; ".join(dict.fromkeys(line.rstrip(".") for line in lines if line)) or "no reason given"
