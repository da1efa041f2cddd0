# SPDX-License-Identifier: Apache-2.0
"""Numbers in a real MLflow database: in the run that trained the model, or in one of their own."""

import pytest

from bt_megatron.errors import BtError
from bt_megatron.evaluation.tracking import destination, metric_name, run_of, send
from bt_megatron.observe.run_folder import RunFolder
from bt_megatron.observe.track_command import track

METRICS = {"zero-shot/piqa/acc": 0.5, "held-out/A+B/bits_per_byte": 1.25}


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """Return the folder of a run that MLflow has, with an export inside."""
    run = RunFolder(tmp_path_factory.mktemp("runs") / "small")
    (run.path / "export").mkdir(parents=True)
    run.config.write_text("name: small\n")
    run.metrics.write_text('{"step": 1, "time": 1.0, "train/loss": 2.0}\n')
    track(run, tracking_uri=None, experiment=None)
    return run


def client_of(place):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=place.uri)


def test_numbers_go_into_the_run_that_trained_the_model(tracked, tmp_path):
    run = run_of(tracked.path / "export")
    assert run is not None
    assert run.path == tracked.path.resolve()
    place = destination(run, tracking_uri=None, experiment=None)
    assert place is not None
    table = tmp_path / "table.md"
    table.write_text("| |\n")
    client = client_of(place)
    client.update_run(place.run_id, status="RUNNING")  # an evaluation in the middle of training
    send(place, METRICS, [table], step=40, name="small", key="k")

    found = client.get_run(place.run_id)
    assert found.info.status == "RUNNING"
    assert found.data.metrics["zero-shot/piqa/acc"] == 0.5
    assert found.data.metrics["train/loss"] == 2.0
    (history,) = client.get_metric_history(place.run_id, "held-out/A.B/bits_per_byte")
    assert (history.step, history.value) == (40, 1.25)
    assert "table.md" in [file.path for file in client.list_artifacts(place.run_id)]
    assert len(client.search_runs([found.info.experiment_id])) == 1


def test_another_place_gets_one_run_of_the_evaluation_s_own(tracked):
    here = destination(tracked, tracking_uri=None, experiment=None)
    assert here is not None
    place = destination(tracked, tracking_uri=here.uri, experiment="evaluations")
    assert place is not None
    assert (place.run_id, place.experiment) == (None, "evaluations")
    for step in (40, 50):  # the same model again: the same run
        send(place, METRICS, [], step=step, name="small", key="fingerprint")

    client = client_of(place)
    experiment = client.get_experiment_by_name("evaluations")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "small"
    assert len(client.get_metric_history(found.info.run_id, "zero-shot/piqa/acc")) == 2
    assert tracked.path.parent.as_uri() in found.info.artifact_uri  # not the working directory


def test_a_folder_that_no_run_made(tmp_path):
    assert run_of(tmp_path) is None
    assert destination(None, tracking_uri=None, experiment=None) is None
    place = destination(None, tracking_uri="sqlite:///x.db", experiment=None)
    assert place is not None
    assert (place.uri, place.experiment) == ("sqlite:///x.db", "bt-megatron")


def test_a_server_that_does_not_answer_is_one_line():
    uri = "http://name:secret@127.0.0.1:9"  # nothing listens on the discard port
    place = destination(None, tracking_uri=uri, experiment=None)
    assert place is not None
    with pytest.raises(
        BtError, match="MLflow did not take the numbers .*run the same command"
    ) as e:
        send(place, METRICS, [], step=0, name="x", key="k")
    assert "secret" not in str(e.value)


@pytest.mark.parametrize(
    ("name", "taken"),
    [("held-out/Pile-CC+ArXiv/loss", "held-out/Pile-CC.ArXiv/loss"), ("a b:c", "a b:c")],
)
def test_names_that_mlflow_takes(name, taken):
    assert metric_name(name) == taken
