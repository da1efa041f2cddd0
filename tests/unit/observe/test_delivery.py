# SPDX-License-Identifier: Apache-2.0
"""Attempts, checkpoints and groups of runs on a real MLflow server, however bad the way to it."""

import time

import pytest

import bt_megatron.observe.mlflow_forwarder as mlflow_forwarder
from bt_megatron.observe.mlflow_run import MlflowRun
from bt_megatron.observe.record import metric_values
from tests.lossy_proxy import LossyProxy
from tests.tracked_run import Run, Tracked, logged, step_record

pytestmark = pytest.mark.xdist_group("mlflow")  # one server for all of these


@pytest.fixture
def proxy(mlflow_server, monkeypatch):
    """A bad way to the server; the forwarder tries again at once."""
    monkeypatch.setattr(mlflow_forwarder, "LONGEST_WAIT_S", 0.01)
    proxy = LossyProxy(mlflow_server.port)
    yield proxy
    proxy.close()


def write_saved(run, step, *, removed=()):
    names = [f"step_{number:08d}" for number in removed]
    run.events.write("saved", step=step, folder=f"step_{step:08d}", removed=names)


def checkpoints(uri, run):
    """Return step and path of the checkpoints that the server knows of a run."""
    there = Tracked(uri, run)
    models = there.client.search_logged_models(
        [there.run.info.experiment_id], filter_string=f"source_run_id = '{there.run_id}'"
    )
    assert {str(model.status) for model in models} <= {"READY"}
    return sorted((int(model.tags["step"]), model.tags["path"]) for model in models)


def outputs(uri, run):
    found = Tracked(uri, run).run.outputs.model_outputs
    return sorted(output.step for output in found)


def test_attempts_are_tags_of_one_run(tmp_path, mlflow_server):
    job = {"slurm_job_id": "17", "slurm_nodes": "node[1-2]"}
    first = Run(tmp_path / "tiny", mlflow_server.uri)
    first.folder.environment.write_text(
        '{"versions": {"bt_megatron": "abc", "torch": "2"}, "command": "train x.yaml", '
        '"user": "me", "gpus": [], "slurm_job_id": "17"}'
    )
    first.folder.plan.write_text('{"layout": "Ebt", "parameters": {"total": 5}}')
    first.events.write("started", step=0, **job)
    assert first.close() == 0
    second = Run(tmp_path / "tiny", mlflow_server.uri)
    second.events.write("resumed", step=20, slurm_restart_count="1", **job)
    assert second.close() == 0

    run = Tracked(mlflow_server.uri, second).run
    tags = run.data.tags
    assert second.state["run_id"] == first.state["run_id"]
    assert tags["attempts"] == "2"
    assert tags["slurm.job_ids"] == "17"
    assert "from step 20 at " in tags["attempt.002"]
    assert tags["attempt.002"].endswith("job 17.1, on node[1-2]")
    assert tags["mlflow.source.git.commit"] == "abc"
    assert tags["mlflow.source.type"] == "JOB"
    assert run.data.params["plan.layout"] == "Ebt"
    assert run.data.params["plan.parameters.total"] == "5"


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "one by one"])
def test_checkpoints_that_exist_are_models_of_the_run(at_once, tmp_path, mlflow_server):
    run = Run(tmp_path / "tiny", mlflow_server.uri)
    for step, removed in ((10, []), (20, []), (30, [10])):
        write_saved(run, step, removed=removed)
        if not at_once:
            assert run.close() == 0
            run = Run(tmp_path / "tiny", mlflow_server.uri)
    assert run.close() == 0

    folder = run.folder.checkpoints.resolve()
    assert checkpoints(mlflow_server.uri, run) == [
        (20, str(folder / "step_00000020")),
        (30, str(folder / "step_00000030")),
    ]


def test_lost_answers_double_nothing_and_lose_nothing(tmp_path, mlflow_server, proxy):
    """Every fifth answer is lost although the server has done what it was asked."""
    proxy.loss = 0.2
    run = Run(tmp_path / "tiny", proxy.uri, parent="group of lost answers")
    run.events.write("started", step=0)
    for step in range(1, 31):
        run.write(range(step, step + 1))
        if step % 10 == 0:
            write_saved(run, step, removed=[step - 10] if step > 10 else [])
    assert run.close(timeout_s=120) == 0
    assert proxy.lost

    there = Tracked(mlflow_server.uri, run)
    for name, value in metric_values(step_record(1)).items():
        assert there.history(name) == (logged(run.folder, name) if value is not None else [])
    assert [step for step, _ in checkpoints(mlflow_server.uri, run)] == [30]
    siblings = there.client.search_runs(
        [there.run.info.experiment_id],
        filter_string=f"tags.`bt_megatron.run_key` = '{run.state['run_key']}'",
    )
    assert [sibling.info.run_id for sibling in siblings] == [there.run_id]
    assert len(outputs(mlflow_server.uri, run)) <= 3 + proxy.lost


def test_a_slow_server_gets_everything(tmp_path, mlflow_server, proxy):
    proxy.delay_s = 0.2
    run = Run(tmp_path / "tiny", proxy.uri)
    run.write(range(1, 101))
    write_saved(run, 100)
    assert run.close() == 0

    there = Tracked(mlflow_server.uri, run)
    assert there.history("train/loss") == logged(run.folder, "train/loss")
    assert [step for step, _ in checkpoints(mlflow_server.uri, run)] == [100]
    assert run.screen.getvalue() == ""


def test_runs_of_a_group_are_children_of_one_run(tmp_path, mlflow_server):
    runs = [Run(tmp_path / name, mlflow_server.uri, parent="sweep") for name in ("a", "b")]
    for run in runs:
        assert run.close() == 0

    parents = {Tracked(mlflow_server.uri, run).run.data.tags["mlflow.parentRunId"] for run in runs}
    (parent,) = parents
    there = Tracked(mlflow_server.uri, runs[0]).client.get_run(parent)
    assert there.info.run_name == "sweep"


def test_of_two_parents_that_were_made_at_once_all_take_the_oldest(mlflow_server):
    def connect():
        return MlflowRun(
            tracking_uri=mlflow_server.uri, experiment="together", artifact_location=None
        )

    one, other = connect(), connect()
    oldest = one._create("parent:crowd", "crowd", None)
    time.sleep(0.002)  # MLflow counts milliseconds
    one._create("parent:crowd", "crowd", None)
    assert {one.open_parent("crowd"), other.open_parent("crowd")} == {oldest}
