# SPDX-License-Identifier: Apache-2.0
"""Job scripts on a real Slurm, with ranks of a few lines that count instead of training."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bt_megatron.errors import LaunchError
from slurm import client, watch
from slurm.__main__ import main
from slurm.cluster import ClusterConfig
from slurm.submit import TrainingJob, keep_script, live_job, submit, submit_script
from tests.slurm_cluster import ROOT, running_slurm, wait_until

ENDS_WITHIN_S = 60
RANK = """#!PYTHON
import os, signal, sys, time
from pathlib import Path

settings = dict(word.split("=", 1) for word in sys.argv if "=" in word)
run = Path(settings["runs_dir"]) / settings["name"]
steps, rank, node = int(settings["train.steps"]), os.environ["RANK"], os.environ["SLURMD_NODENAME"]
asked = []
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda number, _frame: asked.append(number))
step = max([int(p.name[5:]) for p in run.glob("checkpoints/step_*")], default=0)
print(f"rank {rank} on {node} from step {step}", flush=True)

def save():
    folder = run / "checkpoints" / f"step_{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").touch()

while step < steps:
    time.sleep(0.05)
    step += 1
    for name in (f"once-{rank}", f"always-{rank}", f"on-{node}"):
        if (run / name).exists():
            code = int((run / name).read_text())
            if name.startswith("once"):
                (run / name).unlink()
            print(f"error: rank {rank} was told to end with {code}", flush=True)
            os.kill(os.getpid(), -code) if code < 0 else sys.exit(code)
    if signal.SIGUSR1 in asked and not (run / "deaf").exists():
        time.sleep(0.2 if rank == "0" else 0.5)
        save() if rank == "0" else None
        sys.exit(75)
    if step % 20 == 0 and rank == "0":
        save()
"""


@pytest.fixture(scope="module", autouse=True)
def slurm():
    with running_slurm() as folder:
        yield folder


@pytest.fixture
def job(tmp_path):
    """Return a function that makes the job of a run of two ranks on two nodes."""

    def make(*, steps=30, name="counted", **changes):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        python = tmp_path / "rank.py"
        python.write_text(RANK.replace("PYTHON", sys.executable))
        python.chmod(0o755)
        cluster = ClusterConfig(
            name="test",
            gpus_per_node=changes.pop("gpus_per_node", 1),
            cpus_per_gpu=1,
            memory_per_gpu_gb=1,
            time_limit_minutes=10,
            stop_before_limit_s=180,
            python=str(python),
            **changes,
        )
        settings = [f"name={name}", f"runs_dir={tmp_path}/runs", f"train.steps={steps}"]
        settings.append("optimizer.warmup_steps=1")
        config = [ROOT / "configs" / "run" / "demo.yaml"]
        return TrainingJob.load(config, settings, cluster=cluster, processes=2)

    return make


def end_of(job):
    """Return the state of the newest job of a run, having waited for its end."""
    log = lambda: job.records.path / f"job-{job.records.jobs()[-1].job}.log"  # noqa: E731
    wait_until(lambda: live_job(job.records) is None, within_s=ENDS_WITHIN_S, log=log())
    newest = job.records.jobs()[-1].job
    return client.job_states([newest])[newest].state, log().read_text()


def run_dir(job):
    return Path(job.config.run_dir)


def until_started(job, attempts=1):
    latest = run_dir(job) / "logs" / f"attempt_{attempts:03d}"
    wait_until(
        lambda: len([p for p in latest.glob("rank_*.log") if "from step" in p.read_text()]) == 2,
        within_s=ENDS_WITHIN_S,
    )


def causes(job):
    return [attempt.get("cause") for attempt in job.records.attempts()]


def test_a_run_is_submitted_and_looked_at(job, capsys):
    counted = job()
    (submitted,) = submit([counted])
    assert "node" in submitted.starts
    state, log = end_of(counted)

    assert state == "COMPLETED", log
    assert causes(counted) == ["complete"]
    assert main(["status", "--json", submitted.run_dir]) == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["state"], status["checkpoint_step"], status["attempts"]) == ("COMPLETED", 20, 1)
    assert main(["logs", submitted.run_dir]) == 0
    assert "attempt 1 ended: complete" in capsys.readouterr().out
    assert main(["logs", "--json", "--rank", "1", submitted.run_dir]) == 0
    assert json.loads(capsys.readouterr().out)["line"] == "rank 1 on node2 from step 0"


def test_a_faulty_rank_starts_the_run_again_in_the_same_job(job):
    counted = job(steps=60)
    (run_dir(counted) / "once-1").write_text("8")
    submit([counted])
    state, log = end_of(counted)

    assert state == "COMPLETED", log
    assert causes(counted) == ["exit code 8", "complete"]
    assert len(counted.records.jobs()) == 1
    assert "error: rank 1 was told to end with 8" in log
    assert counted.records.failed_nodes() == {}


@pytest.mark.parametrize("code", [2, 9], ids=["configuration", "divergence"])
def test_what_a_restart_does_not_repair_is_not_restarted(job, code):
    counted = job()
    (run_dir(counted) / "always-1").write_text(str(code))
    submit([counted])
    state, log = end_of(counted)

    assert state == "FAILED", log
    assert causes(counted) == [f"an error that a restart does not repair (exit code {code})"]
    assert "giving up" in log
    number = counted.records.jobs()[-1].job
    shown = subprocess.run(["scontrol", "show", "job", number], capture_output=True, text=True)
    assert f"ExitCode={code}:0" in shown.stdout


def test_a_run_without_progress_is_given_up(job):
    counted = job(fruitless_attempts=2)
    (run_dir(counted) / "always-0").write_text("8")
    submit([counted])
    state, log = end_of(counted)

    assert state == "FAILED", log
    assert causes(counted) == ["exit code 8"] * 2
    assert "giving up: 2 attempts in a row failed without a new checkpoint (step 0)" in log


@pytest.mark.parametrize("next_job", ["requeue", "chain"])
def test_a_run_that_is_asked_to_stop_goes_on(job, next_job):
    counted = job(steps=100, next_job=next_job)
    submit([counted])
    until_started(counted)
    first = counted.records.jobs()[0].job
    client.scancel(first, "--batch", "--signal=USR1")
    state, log = end_of(counted)
    if next_job == "chain":
        wait_until(lambda: len(counted.records.jobs()) == 2, within_s=10)
        state, log = end_of(counted)

    assert state == "COMPLETED", log
    assert causes(counted) == ["stopped and saved", "complete"]
    started = counted.records.attempts()[1]
    assert started["saved_step"] > 0
    jobs = [one.job for one in counted.records.jobs()]
    assert len(set(jobs)) == (1 if next_job == "requeue" else 2)
    assert started["restart"] == (1 if next_job == "requeue" else 0)


def test_ranks_that_do_not_save_in_time_are_ended(job):
    counted = job(steps=400)
    (run_dir(counted) / "deaf").touch()
    keep_script(counted)
    text = counted.script.replace("save_within=60 ", "save_within=1 ")
    assert "save_within=1 " in text
    counted.records.script.write_text(text)
    submit_script(counted.records)
    until_started(counted)
    (run_dir(counted) / "checkpoints" / "step_00000390").mkdir(parents=True)
    client.scancel(counted.records.jobs()[-1].job, "--batch", "--signal=USR1")
    state, log = end_of(counted)

    assert state == "COMPLETED", log
    assert "not saved within 1 s" in log
    assert "this job is requeued" in log


def test_cancel_saves_and_resume_goes_on(job, capsys):
    counted = job(steps=200)
    (submitted,) = submit([counted])
    until_started(counted)
    with pytest.raises(LaunchError, match=r"job \d+ of this run is RUNNING"):
        submit([counted])

    assert main(["cancel", "--json", submitted.run_dir]) == 0
    assert json.loads(capsys.readouterr().out)["saving"] is True
    state, log = end_of(counted)
    assert state == "COMPLETED", log
    assert causes(counted) == ["stopped and saved"]
    assert watch.status(counted.records)["stop_requested"] is True

    assert main(["resume", "--json", submitted.run_dir]) == 0
    until_started(counted, 2)
    assert main(["cancel", "--now", submitted.run_dir]) == 0
    assert end_of(counted)[0] == "CANCELLED"
    assert counted.records.attempts()[1]["saved_step"] > 0


def test_resume_releases_a_job_that_is_held(job):
    counted = job()
    keep_script(counted)
    number = submit_script(counted.records, "--hold")
    assert "held" in watch.status(counted.records)["reason"].lower()

    assert watch.resume(counted.records)["job"] == number
    state, log = end_of(counted)
    assert state == "COMPLETED", log


def test_a_node_that_fails_twice_is_left(job):
    counted = job(steps=60, gpus_per_node=2)
    (run_dir(counted) / "on-node1").write_text("-9")
    submit([counted])
    state, log = end_of(counted)
    wait_until(lambda: len(counted.records.jobs()) == 2, within_s=10)
    state, log = end_of(counted)

    assert state == "COMPLETED", log
    assert counted.records.failed_nodes() == {"node1": 2}
    assert [a["nodes"] for a in counted.records.attempts()] == ["node1", "node1", "node2"]


def test_a_dead_node_is_noted_and_the_run_goes_on(job):
    counted = job(steps=120)
    submit([counted])
    until_started(counted)
    update = ["scontrol", "update", "nodename=node2"]
    subprocess.run([*update, "state=down", "reason=test"], check=True)
    number = counted.records.jobs()[-1].job
    wait_until(lambda: client.job_states([number])[number].state == "PENDING", within_s=30)
    subprocess.run([*update, "state=resume"], capture_output=True)
    state, log = end_of(counted)

    assert state == "COMPLETED", log
    assert causes(counted) == ["ended by Slurm", "complete"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"partition": "gpus"}, "nvalid partition.*Change partition in the cluster file; sinfo -s"),
        ({"memory_per_gpu_gb": 4000}, "Slurm refuses.*Change .*memory_per_gpu_gb"),
        ({"gpu_type": "h100"}, "Slurm refuses.*gpu_type"),
        ({"cpus_per_gpu": 1000}, "Slurm refuses.*cpus_per_gpu"),
    ],
    ids=["partition", "memory", "GPUs", "processors"],
)
def test_what_slurm_does_not_take_is_refused_before(job, changes, message):
    counted = job()
    refused = replace(counted, cluster=replace(counted.cluster, **changes))
    with pytest.raises(LaunchError, match=message):
        submit([refused])
    assert refused.records.jobs() == []


def test_more_nodes_than_there_are_is_refused(job):
    counted = job()
    three = replace(counted, plan=replace(counted.plan, world_size=3))
    with pytest.raises(LaunchError, match=r"Slurm refuses.*node"):
        submit([three])


def test_templates_are_taken_by_slurm(tmp_path):
    limits = {"--nodes=4": "--nodes=2", "h100": "a100"}
    for template in sorted((ROOT / "slurm").glob("*.sbatch")):
        text = template.read_text()
        for old, new in limits.items():
            text = text.replace(old, new)
        (tmp_path / template.name).write_text(text)
        assert client.validate(tmp_path / template.name).startswith("Job "), template


def test_submitit_submits_an_array(job):
    jobs = [job(name=f"member-{number}", steps=20, gpus_per_node=2) for number in range(2)]
    submitted = submit(jobs, via="submitit")
    ended = ("COMPLETED", "FAILED")
    for one, member in zip(submitted, jobs, strict=True):
        wait_until(lambda: client.job_states([one.job])[one.job].state in ended, within_s=60)  # noqa: B023
        assert client.job_states([one.job])[one.job].state == "COMPLETED"
        assert "from step 0" in Path(one.log).read_text()
        assert watch.status(member.records)["via"] == "submitit"


def test_submitit_requeues_what_has_saved(job):
    member = job(steps=200, gpus_per_node=2)
    (submitted,) = submit([member], via="submitit")
    wait_until(lambda: Path(submitted.log).exists(), within_s=30)
    wait_until(lambda: "from step 0" in Path(submitted.log).read_text(), within_s=30)
    client.scancel(submitted.job, "--signal=USR1")
    state = lambda: client.job_states([submitted.job])[submitted.job].state  # noqa: E731
    wait_until(lambda: state() in ("COMPLETED", "FAILED"), within_s=60)

    assert state() == "COMPLETED"
    starts = [line for line in Path(submitted.log).read_text().splitlines() if "from step" in line]
    assert len(starts) == 2
    assert not starts[1].endswith("from step 0")
