# SPDX-License-Identifier: Apache-2.0
"""A run on a cluster as the text of its sbatch script. Pure: values in, text out. No torch."""

import shlex
from collections.abc import Sequence
from string import Template

from bt_megatron.config.plan import Plan
from bt_megatron.config.schema import RunConfig
from bt_megatron.errors import LayoutError
from slurm.cluster import ClusterConfig

_SCRIPT = Template("""\
#!/bin/bash
# Run $name on cluster $cluster: $world_size processes, one a GPU. Submit it from the root of the
# repository; what is written is the run folder $run_dir and this job's slurm-*.out there.
$directives
set -euo pipefail
cd "$$SLURM_SUBMIT_DIR"
$setup
# One folder of logs an attempt, so that none is overwritten.
logs=$logs
attempt=1
while [[ -e $$logs/attempt_$$(printf %03d "$$attempt") ]]; do attempt=$$((attempt + 1)); done
logs=$$logs/attempt_$$(printf %03d "$$attempt")
mkdir -p "$$logs"
ln -sfn "$$(basename "$$logs")" "$$(dirname "$$logs")/latest"

MASTER_ADDR=$$(scontrol show hostnames "$$SLURM_JOB_NODELIST" | sed -n 1p)
MASTER_PORT=$$((20000 + SLURM_JOB_ID % 40000))
export MASTER_ADDR MASTER_PORT PYTHONUNBUFFERED=1 OMP_NUM_THREADS=$cpus_per_gpu

echo "attempt $$attempt on $$SLURM_JOB_NODELIST, logs in $$logs"
srun --kill-on-bad-exit=1 --cpus-per-task=$cpus_per_gpu --output="$$logs/rank_%4t.log" bash -c '
    export RANK=$$SLURM_PROCID WORLD_SIZE=$$SLURM_NTASKS LOCAL_RANK=$$SLURM_LOCALID
    exec "$$@"
' rank $command
""")


def render(
    config: RunConfig, cluster: ClusterConfig, plan: Plan, *, arguments: Sequence[str]
) -> str:
    """Write the sbatch script of a run.

    Slurm sends USR1 to every process before the time limit; the run then saves and ends with
    exit code 75. The same script submitted again resumes it.

    Args:
        config: the run.
        cluster: where.
        plan: of the run on as many processes as the job is to have.
        arguments: of `python -m bt_megatron train`, the files and settings of `config`.

    Raises:
        LayoutError: the processes do not fill whole nodes.
    """
    command = [cluster.python, "-m", "bt_megatron", "train", *arguments]
    return _SCRIPT.substitute(
        name=config.name,
        cluster=cluster.name,
        world_size=plan.world_size,
        run_dir=config.run_dir,
        directives="\n".join(f"#SBATCH --{line}" for line in _directives(config, cluster, plan)),
        setup=f"\n{cluster.setup.strip()}\n" if cluster.setup.strip() else "",
        logs=shlex.quote(f"{config.run_dir}/logs"),
        cpus_per_gpu=cluster.cpus_per_gpu,
        command=shlex.join(command),
    )


def _directives(config: RunConfig, cluster: ClusterConfig, plan: Plan) -> list[str]:
    """Return the options of sbatch."""
    nodes, tasks = _nodes_and_tasks(cluster, plan.world_size)
    gpu_type = f"{cluster.gpu_type}:" if cluster.gpu_type else ""
    hours, minutes = divmod(cluster.time_limit_minutes, 60)
    whole_nodes = ["exclusive", "mem=0"] if tasks == cluster.gpus_per_node else []
    return [
        f"job-name={config.name}",
        *([f"partition={cluster.partition}"] if cluster.partition else []),
        *([f"account={cluster.account}"] if cluster.account else []),
        f"nodes={nodes}",
        f"ntasks-per-node={tasks}",
        f"gpus-per-node={gpu_type}{tasks}",
        f"cpus-per-task={cluster.cpus_per_gpu}",
        *whole_nodes,
        f"time={hours:02d}:{minutes:02d}:00",
        f"signal=USR1@{cluster.stop_before_limit_s}",
        "no-requeue",
    ]


def _nodes_and_tasks(cluster: ClusterConfig, world_size: int) -> tuple[int, int]:
    """Spread processes over nodes: part of one, or whole ones."""
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
