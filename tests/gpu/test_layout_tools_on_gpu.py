# SPDX-License-Identifier: Apache-2.0
"""`tools.compare_layouts` on all GPUs, and the profile that `tools.bench_scaling` takes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tools.job_runner import Crew, Job, run_jobs
from tools.layout_run import training_step
from tools.scaling_cases import scaling_cases
from tools.training_speed import exposed_communication, peak_memory, ready_batches

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def profile_one_step(_arguments: dict[str, object]) -> dict[str, float]:
    config = scaling_cases(1, is_tiny=True)[0].config
    with training_step(config) as step:
        exposed = exposed_communication(step, ready_batches(config, step=0), number=0)
    return {**exposed._asdict(), "allocated": peak_memory().allocated}


def test_every_layout_of_these_gpus_is_within_the_limits(tmp_path: Path) -> None:
    file = tmp_path / "layouts.json"
    done = subprocess.run(
        [sys.executable, "-m", "tools.compare_layouts", "--benchmark", str(file)],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    precisions = {row["case"].split("/")[-1] for row in json.loads(file.read_text())["rows"]}
    assert precisions == {"fp32", "bf16"}


def test_one_gpu_communicates_with_nobody(tmp_path: Path) -> None:
    job = Job(
        name="profile",
        function="tests.gpu.test_layout_tools_on_gpu:profile_one_step",
        arguments={},
    )
    (outcome,) = run_jobs([job], Crew(processes=1, on_cpu=False, folder=tmp_path))
    assert outcome.error is None, outcome.error
    assert outcome.value["step_seconds"] > 0
    assert outcome.value["seconds"] < 0.1 * outcome.value["step_seconds"]
    assert outcome.value["allocated"] > 0
