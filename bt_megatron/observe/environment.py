# SPDX-License-Identifier: Apache-2.0
"""On what a run runs: machine, packages, job. Facts for people, which decide nothing.

Of the environment only variables are kept that are known to hold no secrets.
"""

import getpass
import os
import platform
import shlex
import socket
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import psutil

from bt_megatron.observe.system import GIB, gpu_names

SCHEMA = 1
PREFIXES = ("CUDA_", "FI_", "GLOO_", "NCCL_", "NVTE_", "OMP_", "PYTORCH_", "TORCH_NCCL_", "UCX_")
"""Settings of libraries that change how a run behaves."""
SLURM_KEYS = {
    "slurm_job_id": "SLURM_JOB_ID",
    "slurm_restart_count": "SLURM_RESTART_COUNT",
    "slurm_array_job_id": "SLURM_ARRAY_JOB_ID",
    "slurm_array_task_id": "SLURM_ARRAY_TASK_ID",
    "slurm_nodes": "SLURM_JOB_NODELIST",
    "slurm_partition": "SLURM_JOB_PARTITION",
    "slurm_account": "SLURM_JOB_ACCOUNT",
    "slurm_cluster": "SLURM_CLUSTER_NAME",
}
"""What Slurm says of the job that this process belongs to (sbatch(1), OUTPUT ENVIRONMENT)."""


def slurm_job(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return what Slurm says of this job; nothing outside of one."""
    return {key: environment[name] for key, name in SLURM_KEYS.items() if environment.get(name)}


def describe_attempt() -> dict[str, Any]:
    """Return what tells one start of a run from another: machine, moment, job."""
    return {
        "host": socket.gethostname(),
        "process_start": psutil.Process().create_time(),
        **slurm_job(),
    }


def describe_environment(versions: Mapping[str, str]) -> dict[str, Any]:
    """Return the contents of environment.json.

    Args:
        versions: commit of this project, and versions that matter most.
    """
    memory = psutil.virtual_memory()
    return {
        "schema": SCHEMA,
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "user": _user(),
        "versions": dict(versions),
        **describe_attempt(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "memory_gib": round(memory.total / GIB, 1),
        "gpus": gpu_names(),
        "variables": {
            name: value for name, value in sorted(os.environ.items()) if name.startswith(PREFIXES)
        },
        "packages": _packages(),
    }


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return None


def _packages() -> dict[str, str]:
    """Return every installed package and its version, as `pip freeze` would."""
    found = {package.metadata["Name"]: package.version for package in metadata.distributions()}
    return dict(sorted(found.items(), key=lambda item: str(item[0]).lower()))
