# SPDX-License-Identifier: Apache-2.0
"""`tools.compare_layouts` and `tools.bench_scaling` with real processes of torchrun."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch.distributed as dist

from tools.job_runner import Crew, Job, run_jobs


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", *map(str, arguments)]


def fail_on_one_rank(arguments: dict[str, Any]) -> int:
    if dist.get_rank() == arguments["failing"]:
        raise ValueError(f"rank {dist.get_rank()} cannot\nfor a reason")
    dist.barrier()  # where the others wait for it
    return dist.get_world_size()


def values(file: Path) -> dict[tuple[str, str], float]:
    rows = json.loads(file.read_text())["rows"]
    return {(row["case"], row["metric"]): row["value"] for row in rows}


def test_layouts_are_compared_with_one_process(tmp_path: Path) -> None:
    file = tmp_path / "layouts.json"
    chosen = ["--processes", 2, "--layouts", "tp2-sp,pp2-vpp2", "--steps", 1]
    done = subprocess.run(
        command("tools.compare_layouts", "--cpu", *chosen, "--benchmark", file),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("all 2 comparisons are within the limits\n")
    found = values(file)
    assert {case for case, _ in found} == {"layout/tp2-sp/fp32", "layout/pp2-vpp2/fp32"}
    assert all(value <= 1e-6 for (_, metric), value in found.items() if "loss" in metric)
    assert 0 < found["layout/tp2-sp/fp32", "gradient_difference"] <= 1e-5


def test_scaling_is_measured_on_cpu(tmp_path: Path) -> None:
    file = tmp_path / "scaling.json"
    chosen = ["--processes", 2, "--cases", "dp2/block-420m"]
    done = subprocess.run(
        command("tools.bench_scaling", "--tiny", *chosen, "--benchmark", file),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 cases were measured" in done.stdout
    found = values(file)
    assert found["scale-tiny/dp2/block-420m", "loss_difference"] <= 1e-5
    alone = found["scale-tiny/one/block-420m", "tokens_per_s"]
    together = found["scale-tiny/dp2/block-420m", "tokens_per_s"]
    efficiency = found["scale-tiny/dp2/block-420m", "efficiency"]
    assert abs(efficiency - together / (2 * alone)) < 1e-9


def test_a_rank_that_fails_alone_is_quoted_and_the_next_job_is_done(tmp_path: Path) -> None:
    jobs = [
        Job(
            name=str(failing),
            function="tests.e2e.test_layout_tools:fail_on_one_rank",
            arguments={"failing": failing},
        )
        for failing in (1, None)
    ]
    failed, done = run_jobs(jobs, Crew(processes=2, on_cpu=True, folder=tmp_path))
    assert failed.error == "rank 1: ValueError: rank 1 cannot"
    assert (done.error, done.value) == (None, 2)


def test_ctrl_c_leaves_no_process() -> None:
    arguments = ["--cpu", "--processes", 2, "--steps", 1, "--layouts", "dp2"]
    started = psutil.Popen(
        command("tools.compare_layouts", *arguments), stdout=subprocess.PIPE, text=True
    )
    workers = wait_for_workers(started, 2)
    everyone = [started, *started.children(recursive=True)]
    started.send_signal(signal.SIGINT)
    output, _ = started.communicate(timeout=60)
    assert started.returncode == 130
    assert output.endswith("interrupted; nothing was written\n")
    assert len(everyone) >= 2 + len(workers)
    _, alive = psutil.wait_procs(everyone, timeout=10)
    assert alive == []


def wait_for_workers(started: psutil.Popen, count: int) -> list[psutil.Process]:
    """Return what torchrun has started, once it is all there."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert started.poll() is None, "ended early"
        for child in started.children():
            if len(workers := child.children()) == count:
                return workers
        time.sleep(0.05)
    raise AssertionError("the workers never came")
