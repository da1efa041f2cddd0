# SPDX-License-Identifier: Apache-2.0
"""A run on a cluster as the text of its sbatch script. Pure: values in, text out. No torch."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from string import Template

from bt_megatron.config.plan import Plan
from bt_megatron.config.schema import RunConfig
from bt_megatron.errors import LayoutError
from slurm.cluster import LEAST_SAVE_S, ClusterConfig

SUPERVISE = Path(__file__).with_name("supervise.sh")

_SCRIPT = Template("""\
#!/bin/bash
# Run $name on cluster $cluster: $world_size processes, one a GPU. Submit it from the root of the
# repository; everything that is written is in the run folder $run.
$directives
set -uo pipefail
cd "$$SLURM_SUBMIT_DIR" || exit
$setup
export PYTHONUNBUFFERED=1 PYTHONFAULTHANDLER=1 OMP_NUM_THREADS=$cpus_per_gpu

run=$run
script=$script
command=($command)
srun_options=($srun_options)
next_job=$next_job  # how the run goes on after a time limit
save_within=$save_within  # seconds from being asked to stop
fruitless_attempts=$fruitless_attempts  # with a fault and without a new checkpoint, in a row
node_failures=$node_failures  # after which a node is avoided

$supervise""")


def render(
    config: RunConfig, cluster: ClusterConfig, plan: Plan, *, arguments: Sequence[str]
) -> str:
    """Write the sbatch script of a run.

    Slurm sends USR1 to the script before the time limit; the ranks then save and end with
    exit code 75, and the job goes on as `cluster.next_job` says.

    Args:
        config: the run.
        cluster: where.
        plan: of the run on as many processes as the job is to have.
        arguments: of `python -m bt_megatron train`, the files and settings of `config`.

    Raises:
        LayoutError: the processes do not fill whole nodes.
    """
    command = [cluster.python, "-m", "bt_megatron", "train", *arguments]
    folder = f"{config.run_dir}/slurm"
    return _SCRIPT.substitute(
        name=config.name,
        cluster=cluster.name,
        world_size=plan.world_size,
        directives="\n".join(f"#SBATCH --{line}" for line in directives(config, cluster, plan)),
        setup=f"\n{cluster.setup.strip()}\n" if cluster.setup.strip() else "",
        cpus_per_gpu=cluster.cpus_per_gpu,
        run=shlex.quote(config.run_dir),
        script=shlex.quote(f"{folder}/job.sbatch"),
        command=shlex.join(command),
        srun_options=shlex.join(srun_options(cluster)),
        next_job=cluster.next_job,
        save_within=max(LEAST_SAVE_S // 2, cluster.stop_before_limit_s - 2 * LEAST_SAVE_S),
        fruitless_attempts=cluster.fruitless_attempts,
        node_failures=cluster.node_failures,
        supervise=_without_licence(SUPERVISE.read_text()),
    )


def directives(config: RunConfig, cluster: ClusterConfig, plan: Plan) -> list[str]:
    """Return the options of sbatch, without their dashes."""
    nodes, tasks = nodes_and_tasks(cluster, plan.world_size)
    gpu_type = f"{cluster.gpu_type}:" if cluster.gpu_type else ""
    hours, minutes = divmod(cluster.time_limit_minutes, 60)
    where = {
        key: getattr(cluster, key)
        for key in ("partition", "account", "qos", "reservation")
        if getattr(cluster, key)
    }
    return [
        f"job-name={config.name}",
        *(f"{key}={value}" for key, value in where.items()),
        f"nodes={nodes}",
        f"ntasks-per-node={tasks}",
        f"gpus-per-node={gpu_type}{tasks}",
        f"cpus-per-task={cluster.cpus_per_gpu}",
        *_memory(cluster, tasks),
        *(["exclusive"] if tasks == cluster.gpus_per_node else []),
        "wait-all-nodes=1",
        f"time={hours:02d}:{minutes:02d}:00",
        f"signal=B:USR1@{cluster.stop_before_limit_s}",
        "requeue" if cluster.next_job == "requeue" else "no-requeue",
        "open-mode=append",
        f"output={config.run_dir}/slurm/job-%j.log",
    ]


def srun_options(cluster: ClusterConfig) -> list[str]:
    """Return the options with which each process is started; cpus-per-task is not inherited."""
    options = [f"--cpus-per-task={cluster.cpus_per_gpu}"]
    if cluster.container is not None:
        container = cluster.container
        options += [
            f"--container-image={container.image}",
            *([f"--container-mounts={container.mounts}"] if container.mounts else []),
            *([f"--container-workdir={container.workdir}"] if container.workdir else []),
            "--no-container-mount-home",
            "--container-env=MASTER_ADDR,MASTER_PORT,OMP_NUM_THREADS",
        ]
    return options


def nodes_and_tasks(cluster: ClusterConfig, world_size: int) -> tuple[int, int]:
    """Spread processes over nodes: part of one, or whole ones.

    Raises:
        LayoutError: the processes do not fill whole nodes.
    """
    per_node = cluster.gpus_per_node
    if world_size <= per_node:
        return 1, world_size
    if world_size % per_node:
        fewer = world_size - world_size % per_node
        raise LayoutError(
            f"{world_size} processes do not fill nodes of {per_node} GPUs. Use {fewer} or "
            f"{fewer + per_node}."
        )
    return world_size // per_node, per_node


def _memory(cluster: ClusterConfig, tasks: int) -> list[str]:
    if cluster.memory_per_gpu_gb is not None:
        return [f"mem={tasks * cluster.memory_per_gpu_gb}G"]
    return ["mem=0"] if tasks == cluster.gpus_per_node else []


def _without_licence(text: str) -> str:
    """Drop the first line, which the repository's files have, and the line for the linter."""
    lines = text.splitlines(keepends=True)[1:]
    return "".join(line for line in lines if not line.startswith("# shellcheck"))
