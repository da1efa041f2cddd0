# SPDX-License-Identifier: Apache-2.0
"""What a job script must know of a cluster, as frozen values. No torch."""

import re
from dataclasses import dataclass
from pathlib import Path

from bt_megatron.config.load import load_file
from bt_megatron.errors import ConfigError

SET_BY_JOB = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK")
"""Variables that the job script sets; `setup` may not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterConfig:
    """One Slurm cluster, or one partition of it."""

    name: str
    """Name of the cluster, for comments."""
    partition: str | None = None
    """Slurm partition; none: the default one."""
    account: str | None = None
    """Slurm account; none: the default one."""
    gpus_per_node: int = 8
    """GPUs, and so processes, of a node."""
    gpu_type: str | None = None
    """Slurm's name of the GPUs, e.g. a100; none: any."""
    cpus_per_gpu: int = 8
    """CPU cores of each process."""
    time_limit_minutes: int
    """Longest time of one job."""
    stop_before_limit_s: int = 600
    """Seconds before the limit at which a run is told to save and stop."""
    python: str = ".venv/bin/python"
    """Python to run, from the folder in which sbatch is called."""
    setup: str = ""
    """Lines of bash before the start, e.g. `module load` and `export NCCL_...`."""


def load_cluster(path: str | Path) -> ClusterConfig:
    """Load a cluster, such as those in configs/cluster.

    Raises:
        ConfigError: listing every unknown key, wrong type and missing key, or every value
            that cannot be meant.
    """
    cluster = load_file(ClusterConfig, path)
    faults = [
        f"{key} is {getattr(cluster, key)}, expected 1 or more"
        for key in ("gpus_per_node", "cpus_per_gpu", "time_limit_minutes", "stop_before_limit_s")
        if getattr(cluster, key) < 1
    ]
    if cluster.stop_before_limit_s >= cluster.time_limit_minutes * 60:
        faults.append(
            f"stop_before_limit_s ({cluster.stop_before_limit_s}) leaves nothing of "
            f"time_limit_minutes ({cluster.time_limit_minutes}); write less"
        )
    faults += [
        f"setup sets {name}, which the job script sets itself; remove it"
        for name in SET_BY_JOB
        if re.search(rf"\b{name}=", cluster.setup)
    ]
    if faults:
        raise ConfigError(f"{path}: " + "; ".join(faults) + ".")
    return cluster
