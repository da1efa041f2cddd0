# SPDX-License-Identifier: Apache-2.0
"""Where the time of a run goes: a run that is killed, waits in the queue, resumes and ends."""

import orjson
import pytest

from bt_megatron.errors import DataError
from bt_megatron.observe.goodput import read_goodput
from bt_megatron.observe.run_folder import RunFolder


def write(path, values):
    path.write_bytes(b"".join(orjson.dumps(value) + b"\n" for value in values))


def event(kind, time, step, **details):
    return {"schema": 1, "event": kind, "time": time, "step": step, **details}


def step(number, time, *, wait=0.0):
    return {
        "kind": "step",
        "time": time,
        "step": number,
        "train/loss": 1.0,
        "perf/step_s": 10.0,
        "perf/data_wait_fraction": wait,
    }


@pytest.fixture
def folder(tmp_path):
    """Saved after step 2, killed after step 4, resumed from 2 after a pause, ended after 6."""
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    job = {"slurm_job_id": "7", "process_start": 1000.0}
    again = {"slurm_job_id": "7", "slurm_restart_count": "1", "process_start": 1200.0}
    events = [
        event("started", 1020, 0, **job),
        event("first_step", 1030, 1),
        event("saved", 1050, 2, begun=1040.0, stall_s=2.0),
        event("resumed", 1215, 2, **again),
        event("first_step", 1225, 3),
        event("evaluated", 1260, 5, seconds=5.0, loss=1.0),
        event("saved", 1280, 6, begun=1270.0, stall_s=10.0),
        event("stopped", 1280, 6, reason="complete", status="FINISHED"),
    ]
    write(folder.events, events)
    kept = [step(1, 1030), step(2, 1040, wait=0.5)]
    kept += [step(3, 1225), step(4, 1235), step(5, 1245), step(6, 1270, wait=0.1)]
    write(folder.metrics, kept)
    write(folder.discarded_metrics, [step(3, 1052), step(4, 1062)])
    return folder


def test_every_second_belongs_to_one_thing(folder):
    goodput = read_goodput(folder)

    assert goodput.seconds == {
        "start": 30 + 25,
        "checkpoint": 2 + 10,
        "repeated": 20,  # from the end of the stall to the last sign of life
        "down": 1200 - 1062,
        "evaluation": 5,
        "training": 10 + (1255 - 1225) + (1270 - 1260),
    }
    assert sum(goodput.seconds.values()) == goodput.total_s == 280
    assert goodput.data_wait_s == 5 + 1
    assert goodput.fraction == pytest.approx((50 - 6) / 280)
    assert goodput.checkpoint_stalls_s == (2.0, 10.0)


def test_attempts_say_how_they_ended(folder):
    first, second = read_goodput(folder).attempts

    assert (first.job, first.first_step, first.last_step, first.ended) == ("7.0", 0, 4, "killed")
    assert (second.job, second.first_step, second.last_step) == ("7.1", 2, 6)
    assert second.ended == "complete"


def test_a_run_that_is_going_on_ends_with_its_last_sign_of_life(folder):
    lines = folder.events.read_bytes().splitlines(keepends=True)
    folder.events.write_bytes(b"".join(lines[:-2]))
    goodput = read_goodput(folder)

    assert goodput.attempts[-1].ended == "going on"
    assert goodput.attempts[-1].spans[-1].end == 1270
    assert sum(goodput.seconds.values()) == goodput.total_s


def test_nothing_is_lost_by_an_attempt_that_was_stopped(tmp_path):
    """It saves when it is asked to stop, after the last step that it has logged."""
    folder = RunFolder(tmp_path)
    events = [
        event("started", 0, 0),
        event("first_step", 10, 1),
        event("saved", 45, 4, begun=40.0, stall_s=3.0),
        event("stopped", 46, 4, reason="SIGTERM"),
        event("resumed", 60, 4),
        event("stopped", 61, 4, reason="complete"),
    ]
    write(folder.events, events)
    write(folder.metrics, [step(1, 10), step(3, 30)])
    first, _ = read_goodput(folder).attempts
    assert first.ended == "SIGTERM"
    assert {span.kind for span in first.spans} == {"start", "training", "checkpoint"}


def test_a_run_without_a_step_is_told(tmp_path):
    with pytest.raises(DataError, match="no attempt has taken a step yet"):
        read_goodput(RunFolder(tmp_path))
