# SPDX-License-Identifier: Apache-2.0
"""With processes that only follow the protocol of tools/job_worker.py; no torch, no torchrun."""

import contextlib
import sys
import time

import psutil
import pytest

from bt_megatron.errors import RankError
from tools.job_runner import TIME_IS_UP, Crew, Job, run_jobs, worker_command

WORKER = """
import json, os, pathlib, sys, time

folder, starts = map(pathlib.Path, sys.argv[1:])
with starts.open("a") as file:
    file.write(f"{os.getpid()}\\n")
print("cannot import megatron", flush=True)
jobs = json.loads((folder / "jobs.json").read_text())
if any(job["function"] == "no start" for job in jobs):
    sys.exit(1)
(folder / "ready").touch()

def say(name, content):
    (folder / f"{name}.partial").write_text(json.dumps(content))
    (folder / f"{name}.partial").rename(folder / name)

for index, job in enumerate(jobs):
    if job["function"] == "variables":
        say(f"{index}.result", {name: os.environ.get(name) for name in job["arguments"]})
    elif job["function"] == "fail":
        for rank, when in ((0, 2.0), (3, 1.0)):
            error = {"time": when, "rank": rank, "message": f"message of {rank}"}
            say(f"{index}.error.{rank}", error)
        sys.exit(1)
    elif job["function"] == "die":
        print("Segmentation fault", flush=True)
        os._exit(11)
    elif job["function"] == "hang":
        time.sleep(600)
    else:
        say(f"{index}.result", job["arguments"])
"""


@pytest.fixture
def crew(tmp_path):
    """Return a crew of fake processes and a function that lists those that were started."""
    script, starts = tmp_path / "worker.py", tmp_path / "starts"
    script.write_text(WORKER)
    starts.touch()

    def build(**changes):
        def command(_processes, folder):
            return [sys.executable, str(script), str(folder), str(starts)]

        return Crew(
            **{"processes": 2, "on_cpu": True, "folder": tmp_path, **changes}, command=command
        )

    build.started = lambda: [int(line) for line in starts.read_text().split()]
    return build


def jobs(*functions, **arguments):
    return [Job(name=f, function=f, arguments=arguments or {"of": f}) for f in functions]


def outcomes(functions, crew):
    return [(o.name, o.value, o.error) for o in run_jobs(jobs(*functions), crew)]


def test_jobs_are_done_in_order_by_the_same_processes(crew):
    expected = [(name, {"of": name}, None) for name in ("a", "b", "c")]
    assert outcomes(("a", "b", "c"), crew()) == expected
    assert len(crew.started()) == 1


def test_the_rank_that_failed_first_is_quoted_and_the_others_go_on(crew):
    found = outcomes(("a", "fail", "b"), crew())
    assert found == [
        ("a", {"of": "a"}, None),
        ("fail", None, "rank 3: message of 3"),
        ("b", {"of": "b"}, None),
    ]
    assert len(crew.started()) == 2


def test_processes_that_die_are_told_with_their_last_words(crew):
    (_, _, error), after = outcomes(("die", "b"), crew())
    assert error == "its processes ended without a word; they last wrote: Segmentation fault"
    assert after == ("b", {"of": "b"}, None)


def test_a_job_that_hangs_is_ended(crew):
    (_, _, error), after = outcomes(("hang", "b"), crew(patience_s=2.0))
    assert error.startswith("no result after 2 s")
    assert after == ("b", {"of": "b"}, None)
    assert not any(map(psutil.pid_exists, crew.started()))


def test_after_the_deadline_nothing_is_begun(crew):
    late = crew(deadline=time.monotonic() - 1)
    assert outcomes(("a", "b"), late) == [("a", None, TIME_IS_UP), ("b", None, TIME_IS_UP)]
    assert crew.started() == []


def test_at_the_deadline_what_runs_is_ended(crew):
    found = outcomes(("a", "hang", "b"), crew(deadline=time.monotonic() + 3))
    assert found == [("a", {"of": "a"}, None), ("hang", None, TIME_IS_UP), ("b", None, TIME_IS_UP)]
    assert not any(map(psutil.pid_exists, crew.started()))


def test_processes_that_do_not_start_are_an_error_with_what_they_wrote(crew):
    with pytest.raises(RankError, match="did not start:\ncannot import megatron"):
        outcomes(("no start", "b"), crew())


def test_processes_end_with_whoever_waits_for_them(crew):
    with contextlib.closing(run_jobs(jobs("a", "hang"), crew())) as running:
        next(running)
        (started,) = crew.started()
        assert psutil.pid_exists(started)
    assert not psutil.pid_exists(started)


@pytest.mark.parametrize(
    ("processes", "on_cpu", "expected"),
    [
        (1, True, {"RANK": "0", "WORLD_SIZE": "1", "CUDA_VISIBLE_DEVICES": ""}),
        (2, True, {"RANK": None, "WORLD_SIZE": None, "CUDA_VISIBLE_DEVICES": ""}),
        (2, False, {"RANK": None, "WORLD_SIZE": None, "CUDA_VISIBLE_DEVICES": "0,1"}),
    ],
    ids=["one", "cpu", "gpus"],
)
def test_environment(processes, on_cpu, expected, crew, monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    asked = jobs("variables", **dict.fromkeys(expected))
    (outcome,) = run_jobs(asked, crew(processes=processes, on_cpu=on_cpu))
    assert outcome.value == expected


def test_several_processes_are_started_by_torchrun(tmp_path):
    assert "torch.distributed.run" not in worker_command(1, tmp_path)
    assert "--nproc-per-node=4" in worker_command(4, tmp_path)
