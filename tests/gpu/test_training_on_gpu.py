# SPDX-License-Identifier: Apache-2.0
"""Training on a real GPU, as a user starts it: the losses of the CPU, bf16, kill and resume."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from bt_megatron.config.load import to_mapping
from bt_megatron.config.schema import KernelConfig, LayoutConfig, RunConfig, TrainConfig
from bt_megatron.observe.jsonl import read_records
from bt_megatron.observe.run_folder import RunFolder
from tests.tiny_run import tiny_run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

GPU_AGAINST_CPU_RTOL = 1e-4
"""float32 losses after up to 20 steps; TF32 is off."""
BF16_ATOL = 0.05
"""Band around the float32 losses, in nats, of a model of 0.3 M parameters in 20 steps."""


def start(config: RunConfig, *, gpus: int = 1, visible: str | None = None) -> subprocess.Popen:
    folder = Path(config.runs_dir)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{config.name}.yaml"
    file.write_text(yaml.safe_dump(to_mapping(config)))
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}"]
    command = [sys.executable, *(launcher if gpus > 1 else []), "-m", "bt_megatron", "train"]
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    if visible is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible
    log = (folder / f"{config.name}.log").open("ab")
    return subprocess.Popen(
        [*command, str(file)], stdout=log, stderr=log, env=environment, start_new_session=True
    )


def run_to_the_end(config: RunConfig, **how: object) -> dict[tuple[str, int], float]:
    process = start(config, **how)
    code = process.wait(timeout=240)
    assert code == 0, (Path(config.runs_dir) / f"{config.name}.log").read_text()
    return losses(config)


def losses(config: RunConfig) -> dict[tuple[str, int], float]:
    names = {"step": "train/loss", "evaluation": "validation/loss"}
    records = read_records(RunFolder.of(config).metrics)
    return {(r["kind"], r["step"]): r[names[r["kind"]]] for r in records}


@pytest.fixture(scope="module")
def on_cpu(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    config = tiny_run(tiny_data, tmp_path_factory.mktemp("cpu"))
    return run_to_the_end(config, visible="")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gpu_gives_the_losses_of_the_cpu(
    precision: str, tiny_data: Path, tmp_path: Path, on_cpu: dict
) -> None:
    train = TrainConfig(steps=20, precision=precision)
    got = run_to_the_end(tiny_run(tiny_data, tmp_path, train=train))
    assert got.keys() == on_cpu.keys()
    band = {"rel": GPU_AGAINST_CPU_RTOL} if precision == "fp32" else {"abs": BF16_ATOL}
    for key, loss in on_cpu.items():
        assert got[key] == pytest.approx(loss, **band), key


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_killed_run_on_a_gpu_is_bitwise_the_undisturbed_one(
    precision: str, tiny_data: Path, tmp_path: Path
) -> None:
    config = tiny_run(tiny_data, tmp_path, train=TrainConfig(steps=20, precision=precision))
    expected = run_to_the_end(replace(config, name="undisturbed"))
    assert run_with_a_kill(config) == expected


def run_with_a_kill(config: RunConfig) -> dict[tuple[str, int], float]:
    """Kill a run after step 12, and let it resume from an earlier checkpoint."""
    process = start(config)
    folder = RunFolder.of(config)
    deadline = time.monotonic() + 120
    while max((r["step"] for r in read_records(folder.metrics)), default=0) < 12:
        assert process.poll() is None, "ended early"
        assert time.monotonic() < deadline, "step 12 never came"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return run_to_the_end(config)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize(
    "layout",
    [LayoutConfig(), LayoutConfig(tp=2, sequence_parallel=True), LayoutConfig(pp=2)],
    ids=["dp2", "tp2-sp", "pp2"],
)
def test_two_gpus_give_the_losses_of_the_cpu(
    layout: LayoutConfig, tiny_data: Path, tmp_path: Path, on_cpu: dict
) -> None:
    got = run_to_the_end(tiny_run(tiny_data, tmp_path, layout=layout), gpus=2)
    for key, loss in on_cpu.items():
        assert got[key] == pytest.approx(loss, rel=GPU_AGAINST_CPU_RTOL), key


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("layers", ["torch", "transformer_engine"])
@pytest.mark.parametrize(
    "layout",
    [LayoutConfig(), LayoutConfig(tp=2), LayoutConfig(tp=2, sequence_parallel=True)],
    ids=["dp2", "tp2", "tp2-sp"],
)
def test_bf16_on_two_gpus_stays_in_the_band(
    layout: LayoutConfig, layers: str, tiny_data: Path, tmp_path: Path, on_cpu: dict
) -> None:
    train, kernels = TrainConfig(steps=20, precision="bf16"), KernelConfig(layers=layers)
    config = tiny_run(tiny_data, tmp_path, layout=layout, train=train, kernels=kernels)
    got = run_to_the_end(config, gpus=2)
    for key, loss in on_cpu.items():
        assert got[key] == pytest.approx(loss, abs=BF16_ATOL), key
