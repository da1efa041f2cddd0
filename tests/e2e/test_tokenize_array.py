# SPDX-License-Identifier: Apache-2.0
"""The array script of tokenisation: its command is the one that data_prep understands."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bt_megatron.data.manifest import load_manifest
from data_prep.__main__ import main

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "slurm/tokenize-array.sbatch"


@pytest.fixture
def plan(tmp_path):
    """Two tasks of one input each."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"text": "{name} and some words"}}\n')
    sample = ROOT / "tests/fixtures/tokenizers/gpt-neox-20b.json"
    given = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), "--tokenizer", str(sample)]
    assert main(["plan", *given, "--out", str(tmp_path / "work"), "--tasks", "2"]) == 0
    return tmp_path / "work/plan.json"


def run_task(plan, task):
    """Run the script as one task of an array, with what Slurm would set."""
    environment = {
        **os.environ,
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_ARRAY_TASK_ID": str(task),
        "SLURM_CPUS_PER_TASK": "1",
        "PYTHON": sys.executable,
    }
    return subprocess.run(
        ["bash", str(SCRIPT), str(plan)], capture_output=True, text=True, env=environment
    )


def test_tasks_make_their_folders_and_merge_makes_one(plan, tmp_path):
    for task in (0, 1):
        done = run_task(plan, task)
        assert done.returncode == 0, done.stderr
    assert main(["merge", "--plan", str(plan), "--out", str(tmp_path / "all")]) == 0
    assert [shard.name for shard in load_manifest(tmp_path / "all").shards] == ["a", "b"]


def test_task_that_does_not_exist_fails(plan):
    done = run_task(plan, 2)
    assert done.returncode == 4
    assert "has no task 2, but 0 to 1" in done.stderr
