# SPDX-License-Identifier: Apache-2.0
"""Tags from files: what is known and nothing else. (test_delivery.py sends them.)"""

import json

import pytest

from bt_megatron.observe.environment import describe_environment
from bt_megatron.observe.mlflow_tags import (
    LONGEST,
    attempt_tags,
    environment_tags,
    plan_parameters,
)
from bt_megatron.observe.run_folder import RunFolder

NOON = 1_700_000_000.0


def start(kind="started", step=0, **details):
    return {"event": kind, "time": NOON, "step": step, **details}


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (start(), "from step 0 at 2023-11-14 22:13:20 UTC"),
        (start(host="n1"), "from step 0 at 2023-11-14 22:13:20 UTC, on n1"),
        (
            start("resumed", 7, host="n1", slurm_job_id="3", slurm_nodes="n[1-2]"),
            "from step 7 at 2023-11-14 22:13:20 UTC, job 3.0, on n[1-2]",
        ),
        (
            start(slurm_job_id="5", slurm_array_job_id="4", slurm_array_task_id="1"),
            "from step 0 at 2023-11-14 22:13:20 UTC, job 5.0, array task 4_1",
        ),
    ],
    ids=["nothing known", "a machine", "a requeued job", "a job of an array"],
)
def test_an_attempt_is_one_line(event, line):
    assert attempt_tags([event])["attempt.001"] == line


def test_jobs_are_listed_once_each():
    events = [start(slurm_job_id=job) for job in ("8", "8", "9")]
    tags = attempt_tags([*events, {"event": "saved", "time": NOON, "step": 1}])
    assert tags["attempts"] == "3"
    assert tags["slurm.job_ids"] == "8,9"
    assert attempt_tags([]) == {}


def test_the_environment_gives_the_tags_that_mlflow_knows(tmp_path):
    folder = RunFolder(tmp_path)
    assert environment_tags(folder) == plan_parameters(folder) == {}
    value = describe_environment({"bt_megatron": "c0ffee", "torch": "2.11.0"})
    folder.environment.write_text(json.dumps(value | {"command": "x" * 2 * LONGEST}))
    tags = environment_tags(folder)
    assert tags["mlflow.source.git.commit"] == "c0ffee"
    assert tags["version.torch"] == "2.11.0"
    assert len(tags["command"]) == LONGEST
