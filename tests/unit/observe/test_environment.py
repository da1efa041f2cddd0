# SPDX-License-Identifier: Apache-2.0
"""The environment: facts of this machine and job, and no secrets."""

import json
import time

from bt_megatron.observe.environment import describe_attempt, describe_environment, slurm_job


def test_the_environment_is_json_and_names_what_is_installed():
    value = json.loads(json.dumps(describe_environment({"torch": "2"})))
    assert value["versions"] == {"torch": "2"}
    assert value["packages"]["mlflow"]
    assert value["cpus"] >= 1


def test_variables_that_may_be_secret_are_left_out(monkeypatch):
    monkeypatch.setenv("NCCL_DEBUG", "WARN")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    value = describe_environment({})
    assert value["variables"]["NCCL_DEBUG"] == "WARN"
    assert "secret" not in json.dumps(value)


def test_a_job_of_slurm_is_known_by_its_variables():
    variables = {"SLURM_JOB_ID": "12", "SLURM_RESTART_COUNT": "2", "SLURM_JOB_PARTITION": ""}
    assert slurm_job(variables) == {"slurm_job_id": "12", "slurm_restart_count": "2"}
    assert slurm_job({}) == {}


def test_an_attempt_began_when_its_process_did():
    assert 0 < describe_attempt()["process_start"] < time.time()
