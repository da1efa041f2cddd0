# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from bt_megatron.config.load import load_run
from bt_megatron.config.plan import make_plan
from bt_megatron.errors import LayoutError
from slurm.cluster import load_cluster
from slurm.render import render

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "fixtures" / "slurm" / "block-1.2b-a100-8x.sbatch"
RUN = "configs/run/block-1.2b.yaml"
COMMAND = f"python -m slurm render {RUN} --cluster configs/cluster/a100-8x.yaml --gpus 32"

SRUN = """#!/bin/bash
# Starts two tasks as srun does; options are dropped, but for the place of the logs.
while [[ $1 == --* ]]; do
    [[ $1 == --output=* ]] && output=${1#--output=}
    shift
done
for task in 0 1; do
    SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NTASKS=2 "$@" >"${output/\\%4t/000$task}"
done
"""
PYTHON = """#!/bin/bash
echo "$RANK/$WORLD_SIZE/$LOCAL_RANK at $MASTER_ADDR:$MASTER_PORT: $*"
"""


@pytest.fixture
def cluster():
    return load_cluster(ROOT / "configs/cluster/a100-8x.yaml")


def rendered(cluster, gpus, settings=()):
    config = load_run([ROOT / RUN], settings).config
    return render(config, cluster, make_plan(config, gpus), arguments=[RUN])


def option(text, name):
    (line,) = [line for line in text.splitlines() if line.startswith(f"#SBATCH --{name}=")]
    return line.partition("=")[2]


def test_the_script_is_the_golden_one(cluster):
    text = rendered(cluster, 32)
    assert text == GOLDEN.read_text(), (
        f"slurm/render.py writes another script. If that is meant:\n"
        f"  {COMMAND} > {GOLDEN.relative_to(ROOT)}"
    )


@pytest.mark.parametrize(
    ("gpus", "nodes", "tasks"), [(1, "1", "1"), (4, "1", "4"), (8, "1", "8"), (32, "4", "8")]
)
def test_processes_are_spread_one_a_gpu(cluster, gpus, nodes, tasks):
    text = rendered(cluster, gpus)

    assert option(text, "nodes") == nodes
    assert option(text, "ntasks-per-node") == tasks
    assert option(text, "gpus-per-node") == f"a100:{tasks}"
    assert ("#SBATCH --exclusive" in text) == (tasks == "8")


def test_nodes_are_filled_or_refused(cluster):
    config = load_run([ROOT / RUN], ["batch.global_batch_size=480"]).config
    with pytest.raises(LayoutError, match="12 processes do not fill nodes of 8 GPUs. Use 8 or 16"):
        render(config, cluster, make_plan(config, 12), arguments=[RUN])


def test_what_a_cluster_leaves_out_is_left_out(cluster):
    bare = replace(cluster, partition=None, account=None, gpu_type=None, setup="")
    text = rendered(bare, 8)

    assert "partition" not in text
    assert "account" not in text
    assert option(text, "gpus-per-node") == "8"


def run_script(text, folder, **variables):
    """Run a job script with a Slurm of two tasks that is made of three shell scripts."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    scripts = {"srun": SRUN, "scontrol": "#!/bin/bash\nprintf 'n1\\nn2\\n'\n", "python": PYTHON}
    for name, content in scripts.items():
        (programs / name).write_text(content)
        (programs / name).chmod(0o755)
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(folder),
        "SLURM_JOB_ID": "123",
        "SLURM_JOB_NODELIST": "n[1-2]",
        **variables,
    }
    (folder / "job.sh").write_text(text)
    return subprocess.run(
        ["bash", "job.sh"], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )


def test_the_script_starts_every_rank_and_keeps_the_logs_of_each_attempt(cluster, tmp_path):
    text = rendered(replace(cluster, python="python"), 8)
    for attempt in (1, 2):
        done = run_script(text, tmp_path)
        assert done.returncode == 0, done.stderr

        port = 20000 + (123 * 97 + attempt) % 12000
        logs = tmp_path / "runs" / "block-1.2b" / "logs"
        assert (logs / "latest").resolve() == logs / f"attempt_00{attempt}"
        assert [path.read_text() for path in sorted((logs / "latest").glob("rank_*.log"))] == [
            f"{rank}/2/{rank} at n1:{port}: -m bt_megatron train {RUN}\n" for rank in (0, 1)
        ]
    assert sorted(path.name for path in logs.iterdir()) == ["attempt_001", "attempt_002", "latest"]


def test_arguments_reach_the_trainer_as_they_are(cluster, tmp_path):
    config = load_run([ROOT / RUN]).config
    strange = ["a b.yaml", "--set", "name='x\"$HOME'"]
    text = render(
        config, replace(cluster, python="python"), make_plan(config, 8), arguments=strange
    )
    done = run_script(text, tmp_path)

    assert done.returncode == 0, done.stderr
    log = tmp_path / "runs/block-1.2b/logs/latest/rank_0000.log"
    assert log.read_text().endswith("-m bt_megatron train a b.yaml --set name='x\"$HOME'\n")


def test_a_failed_rank_fails_the_job(cluster, tmp_path):
    assert run_script(rendered(replace(cluster, python="false"), 8), tmp_path).returncode == 1
