# SPDX-License-Identifier: Apache-2.0
"""A sweep that is killed in its second run and continued: the runs, their parent, the report."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from bt_megatron.config.load import to_mapping
from bt_megatron.config.schema import LogConfig, MlflowConfig
from bt_megatron.observe.goodput import read_goodput
from bt_megatron.observe.jsonl import read_records
from bt_megatron.observe.run_folder import RunFolder
from tests.tiny_run import tiny_run

pytestmark = pytest.mark.xdist_group("mlflow")  # one server for all of these

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 240
SWEEP = """\
name: killed
title: A sweep that is killed
axis: prefix vectors
run: [{run}]
cases:
  "1":
    model: {{token_decoder: {{prefix_length: 1}}}}
  "2":
    model: {{token_decoder: {{prefix_length: 2}}}}
"""


@pytest.fixture
def file(tmp_path, tiny_data, mlflow_server):
    tracking = MlflowConfig(tracking_uri=mlflow_server.uri, experiment="sweep that is killed")
    config = tiny_run(
        tiny_data, tmp_path / "runs", log=LogConfig(interval_steps=1, mlflow=tracking)
    )
    run = tmp_path / "run.yaml"
    run.write_text(yaml.safe_dump(to_mapping(config)))
    file = tmp_path / "sweep.yaml"
    file.write_text(SWEEP.format(run=run))
    return file


def start(file):
    command = [sys.executable, "-m", "slurm", "sweep", str(file), "--local"]
    with (file.parent / "log").open("ab") as log:
        return subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True, env=os.environ
        )


def steps_of(folder):
    return max((record["step"] for record in read_records(folder.metrics)), default=0)


def test_a_sweep_that_is_killed_goes_on(file, tmp_path, mlflow_server):
    from mlflow import MlflowClient

    first, second = (RunFolder(tmp_path / f"runs/killed-{case}") for case in (1, 2))
    process = start(file)
    deadline = time.monotonic() + PATIENCE_S
    while steps_of(second) < 7:
        assert process.poll() is None, (file.parent / "log").read_text()
        assert time.monotonic() < deadline, (file.parent / "log").read_text()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()

    assert start(file).wait(PATIENCE_S) == 0, (file.parent / "log").read_text()
    assert len(read_goodput(first).attempts) == 1, "what is complete is left alone"
    assert [a.ended for a in read_goodput(second).attempts] == ["killed", "complete"]
    rows = json.loads((tmp_path / "runs/killed/report.json").read_text())["rows"]
    assert {row["detail"]["status"] for row in rows} == {"FINISHED"}
    assert {row["case"] for row in rows} == {"sweep/killed/1", "sweep/killed/2"}

    client = MlflowClient(mlflow_server.uri)
    experiment = client.get_experiment_by_name("sweep that is killed").experiment_id
    runs = {run.info.run_name: run for run in client.search_runs([experiment])}
    assert set(runs) == {"killed", "killed-1", "killed-2"}
    parents = {run.data.tags.get("mlflow.parentRunId") for run in runs.values()}
    assert parents == {None, runs["killed"].info.run_id}
    assert runs["killed-2"].data.tags["attempts"] == "2"
    losses = client.get_metric_history(runs["killed-2"].info.run_id, "train/loss")
    assert sorted(metric.step for metric in losses) == list(range(1, 21))
