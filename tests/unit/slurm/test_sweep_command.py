# SPDX-License-Identifier: Apache-2.0
"""The sweep command: what it would do. (Trainings: tests/e2e/test_sweep.py.)"""

import subprocess
from pathlib import Path

import pytest

from slurm.__main__ import main
from slurm.cluster import load_cluster
from slurm.sweep import load_sweep
from slurm.sweep_command import report_command, report_script

ROOT = Path(__file__).parents[3]
FILE = "configs/sweep/toy/prefix_length.yaml"
CLUSTER = "configs/cluster/a100-8x.yaml"


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_runs_here_come_one_after_the_other_and_then_the_report(tmp_path, capsys):
    setting = f"runs_dir={tmp_path}"
    assert main(["sweep", FILE, "--local", "--dry-run", "--set", setting]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "sweep toy-prefix-length: 4 runs, 4 to do"
    trainings = [line for line in lines if " -m bt_megatron train " in line]
    assert [line.split()[0] for line in trainings] == ["[1/4]", "[2/4]", "[3/4]", "[4/4]"]
    assert lines[-1].endswith(f"-m tools.sweep_report {FILE} --set {setting}")
    assert list(tmp_path.iterdir()) == []


def test_several_processes_are_started_by_torchrun(tmp_path, capsys):
    options = ["--dry-run", "--gpus", "2", "--set", f"runs_dir={tmp_path}"]
    assert main(["sweep", FILE, "--local", *options]) == 0
    assert "torch.distributed.run --standalone --nproc-per-node=2" in capsys.readouterr().out


def test_a_job_array_is_checked_before_it_is_submitted(tmp_path, capsys):
    settings = ["--set", f"runs_dir={tmp_path}", "--set", "batch.micro_batch_size=1"]
    settings += ["--set", "batch.global_batch_size=12"]
    options = ["--cluster", CLUSTER, "--dry-run", *settings]
    assert main(["sweep", FILE, *options, "--gpus", "4"]) == 0
    assert capsys.readouterr().out.count("log.mlflow.parent=toy-prefix-length") == 4
    assert main(["sweep", FILE, *options, "--gpus", "12"]) == 3
    assert "12 processes do not fill nodes of 8 GPUs" in capsys.readouterr().err


def test_status_says_what_is_to_do(tmp_path, capsys):
    assert main(["sweep", FILE, "--status", "--set", f"runs_dir={tmp_path}"]) == 0
    assert capsys.readouterr().out.count("to do     ") == 4


def test_a_wrong_file_is_told(tmp_path, capsys):
    assert main(["sweep", str(tmp_path / "none.yaml"), "--status"]) == 2
    assert "No such file" in capsys.readouterr().err


def test_the_report_is_a_job_of_its_own_script():
    sweep = load_sweep(FILE)
    text = report_script(sweep, load_cluster(CLUSTER), report_command(FILE, ["train.steps=9"]))
    assert "#SBATCH --partition=gpu\n" in text
    assert "#SBATCH --output=runs/toy-prefix-length/report-%j.log\n" in text
    assert f"exec .venv/bin/python -m tools.sweep_report {FILE} --set train.steps=9\n" in text
    checked = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
    assert checked.returncode == 0, checked.stderr
