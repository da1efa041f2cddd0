# SPDX-License-Identifier: Apache-2.0
"""What a job script must know of a cluster, as frozen values. No torch."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bt_megatron.config.load import load_file
from bt_megatron.errors import ConfigError

SET_BY_JOB = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK")
"""Variables that the job script sets; `setup` may not."""

SET_BY_SLURM = ("SLURM_", "SRUN_", "SBATCH_", "SUBMITIT_")
"""Beginnings of variables that Slurm and submitit set, or obey over the script; likewise."""

LEAST_SAVE_S = 60
"""Slurm looks at time limits once a minute and may ask up to a minute early or late."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ContainerConfig:
    """An image that the processes run in, through pyxis and enroot (options of srun)."""

    image: str
    """A .sqsh file that all nodes see (`enroot import` makes one), or a registry's image."""
    mounts: str = ""
    """SOURCE:TARGET[:ro], separated by commas; the repository, data and runs must be among them."""
    workdir: str | None = None
    """Where the repository is inside; none: where it is outside."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterConfig:
    """One Slurm cluster, or one partition of it."""

    name: str
    """Name of the cluster, for comments."""
    partition: str | None = None
    """Slurm partition; none: the default one."""
    account: str | None = None
    """Slurm account; none: the default one."""
    qos: str | None = None
    """Slurm quality of service; none: the default one."""
    reservation: str | None = None
    """Slurm reservation to run in."""
    gpus_per_node: int = 8
    """GPUs, and so processes, of a node."""
    gpu_type: str | None = None
    """Slurm's name of the GPUs, e.g. a100; none: any."""
    cpus_per_gpu: int = 8
    """CPU cores of each process."""
    memory_per_gpu_gb: int | None = None
    """Memory for each process, in GB; none: all of a whole node, the default for a part of one."""
    time_limit_minutes: int
    """Longest time of one job; a run takes as many jobs as it needs."""
    stop_before_limit_s: int = 600
    """Seconds before the limit at which a run is told to save and stop."""
    next_job: Literal["requeue", "chain"] = "requeue"
    """How a run goes on after a time limit: the same job again, or, where a site forbids that, a
    new job that waits for the end of this one."""
    fruitless_attempts: int = 3
    """Attempts in a row with a fault and without a new checkpoint, after which a run gives up."""
    node_failures: int = 2
    """Failures of a node after which a run avoids it; 0: never."""
    python: str = ".venv/bin/python"
    """Python to run, from the folder in which sbatch is called."""
    container: ContainerConfig | None = None
    """Image to run in; none: as the node is, after `setup`."""
    setup: str = ""
    """Lines of bash before the start, e.g. `module load` and `export NCCL_...`."""


def load_cluster(path: str | Path) -> ClusterConfig:
    """Load a cluster, such as those in configs/cluster.

    Raises:
        ConfigError: listing every unknown key, wrong type and missing key, or every value
            that cannot be meant.
    """
    cluster = load_file(ClusterConfig, path)
    faults = [*_wrong_numbers(cluster), *_owned_variables(cluster)]
    if cluster.container is not None and not cluster.container.image:
        faults.append("container.image is empty; name an image or remove the container section")
    if faults:
        raise ConfigError(f"{path}: " + "; ".join(faults) + ".")
    return cluster


def _wrong_numbers(cluster: ClusterConfig) -> list[str]:
    least = {
        "gpus_per_node": 1,
        "cpus_per_gpu": 1,
        "memory_per_gpu_gb": 1,
        "time_limit_minutes": 1,
        "stop_before_limit_s": LEAST_SAVE_S,
        "fruitless_attempts": 1,
        "node_failures": 0,
    }
    faults = [
        f"{key} is {value}, expected {limit} or more"
        for key, limit in least.items()
        if (value := getattr(cluster, key)) is not None and value < limit
    ]
    if cluster.stop_before_limit_s >= cluster.time_limit_minutes * 60:
        faults.append(
            f"stop_before_limit_s ({cluster.stop_before_limit_s}) leaves nothing of "
            f"time_limit_minutes ({cluster.time_limit_minutes}); write less"
        )
    return faults


def _owned_variables(cluster: ClusterConfig) -> list[str]:
    """Say which variables `setup` sets that are not its own."""
    assigned = re.findall(r"(?<![\w$.-])([A-Za-z_]\w*)=", cluster.setup)
    owned = [name for name in assigned if name in SET_BY_JOB or name.startswith(SET_BY_SLURM)]
    return [
        f"setup sets {name}, which the job script or Slurm sets itself; remove it"
        for name in dict.fromkeys(owned)
    ]
