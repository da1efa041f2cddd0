# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from bt_megatron.errors import LaunchError
from bt_megatron.observe.run_folder import RunFolder
from slurm.records import Job, Records, open_records

LINES = (
    {"time": 10.5, "event": "started", "attempt": 1, "nodes": "n[1-2]", "saved_step": 0},
    {"time": 20.5, "event": "ended", "attempt": 1, "code": 8, "saved_step": 40},
    {"time": 21.5, "event": "started", "attempt": 2, "nodes": "n[1-2]", "saved_step": 40},
)
ATTEMPTS = "\n".join(map(json.dumps, LINES)) + '\n{"time": 30.5, "ev'


@pytest.fixture
def records(tmp_path):
    return Records(RunFolder(tmp_path))


def test_attempts_are_put_together_and_a_line_that_is_being_written_is_left_alone(records):
    records.path.mkdir()
    (records.path / "attempts.jsonl").write_text(ATTEMPTS)
    first, second = records.attempts()

    assert first["started"] == 10.5
    assert first["ended"] == 20.5
    assert (first["saved_step"], first["ended_step"], first["code"]) == (0, 40, 8)
    assert "ended" not in second


def test_failures_are_counted_by_node(records):
    assert records.failed_nodes() == {}
    records.path.mkdir()
    (records.path / "failed_nodes").write_text("n2 1 7 1\nn1 2 7 2\nn2 3 8 3\n")
    assert records.failed_nodes() == {"n1": 1, "n2": 2}


def test_jobs_are_kept_in_order(records):
    records.add_job(Job("7", "sbatch"))
    records.add_job(Job("99", "local", pid=99))
    assert [(job.job, job.via, job.pid) for job in records.jobs()] == [
        ("7", "sbatch", None),
        ("99", "local", 99),
    ]


def test_a_folder_without_jobs_is_refused(tmp_path):
    with pytest.raises(LaunchError, match="no job was submitted for this folder"):
        open_records(tmp_path)
