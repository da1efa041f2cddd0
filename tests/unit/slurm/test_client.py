# SPDX-License-Identifier: Apache-2.0
import pytest

from bt_megatron.errors import LaunchError
from slurm import client

SAID = {  # what sbatch 22.05 and 23.11 say
    "partition": "sbatch: error: invalid partition specified: gpus\nallocation failure: Invalid "
    "partition name specified",
    "account": "sbatch: error: Batch job submission failed: Invalid account or account/partition "
    "combination specified",
    "qos": "sbatch: error: Batch job submission failed: Invalid qos specification",
    "reservation": "sbatch: error: Batch job submission failed: Requested reservation is invalid",
    "memory_per_gpu_gb": "sbatch: error: Memory specification can not be satisfied",
    "time_limit_minutes": "allocation failure: Requested time limit is invalid (missing or exceeds "
    "some limit)",
    "gpu_type": "allocation failure: Requested node configuration is not available",
}


@pytest.mark.parametrize("key", SAID)
def test_a_refusal_names_the_rule_the_key_and_where_to_look(key):
    told = client.explain_refusal(SAID[key])
    assert told.startswith("Slurm refuses the job: ")
    assert "sbatch:" not in told
    assert f"Change {key}" in told or f"{key}," in told
    assert any(command in told for command in ("sinfo", "sacctmgr", "scontrol"))


def test_an_unknown_refusal_is_passed_on():
    assert client.explain_refusal("sbatch: error: Full moon\n") == (
        "Slurm refuses the job: Full moon."
    )


def test_what_a_job_inherits_is_without_the_outer_job():
    outer = {"SLURM_JOB_ID": "7", "SLURM_CONF": "/etc/x", "SBATCH_ACCOUNT": "a", "HOME": "/root"}
    assert client.outer_environment(outer) == {"SLURM_CONF": "/etc/x", "HOME": "/root"}


def test_without_slurm_it_is_said_what_else_there_is(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(LaunchError, match="not installed here.*--via local"):
        client.sbatch("job.sbatch")
    assert client.job_states(["3"])["3"].state == "UNKNOWN"
