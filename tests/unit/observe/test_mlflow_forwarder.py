# SPDX-License-Identifier: Apache-2.0
"""Forwarding to a real MLflow server: all of it, each record once, never in training's way."""

import shutil
import signal
import socket

import orjson
import pytest

from bt_megatron.errors import DataError
from bt_megatron.observe.jsonl import EventsLog, read_records, rewind
from bt_megatron.observe.mlflow_forwarder import describe
from bt_megatron.observe.record import EvaluationRecord
from bt_megatron.observe.track_command import main_track
from tests.tracked_run import CONFIG, Run, Tracked, logged

pytestmark = pytest.mark.xdist_group("mlflow")  # one server for all of these


@pytest.fixture
def silent_port():
    """A port that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield listener.getsockname()[1]


def test_everything_arrives(tmp_path, mlflow_server, capfd):
    run = Run(tmp_path / "tiny", mlflow_server.uri)
    run.folder.plan.write_text("{}")
    EventsLog(run.folder).write("started", step=0)
    run.write(range(1, 61))
    run.log.write(
        EvaluationRecord(step=60, loss=2.0, bits_per_byte=0.9, targets=100),
        extra={"system/cpu_percent": 50.0},
    )
    assert run.close() == 0

    there = Tracked(mlflow_server.uri, run)
    for name in ("train/loss", "train/tokens", "validation/bits_per_byte", "system/cpu_percent"):
        assert there.history(name) == logged(run.folder, name) != []
    assert there.history("perf/mfu") == []  # not known, so not sent
    assert there.run.data.params == {
        "name": "tiny",
        "train.steps": "100",
        "optimizer.lr": "0.001",
        "optimizer.decay_steps": "null",
    }
    assert there.run.info.status == "FINISHED"
    assert there.run.info.run_name == "tiny"
    files = {file.path for file in there.client.list_artifacts(there.run_id)}
    assert files == {"config.resolved.yaml", "plan.json", "events.jsonl"}
    assert run.screen.getvalue() == ""
    assert capfd.readouterr() == ("", "")  # nor does MLflow itself print


def test_a_server_that_is_killed_and_comes_back_misses_nothing(tmp_path, mlflow_server):
    run = Run(tmp_path / "tiny", mlflow_server.uri)
    run.write(range(1, 11))
    run.wait_until_sent()
    mlflow_server.kill()
    run.write(range(11, 31))
    run.wait_for_text("takes no metrics")
    mlflow_server.start()
    mlflow_server.wait()
    run.write(range(31, 36))
    assert run.close() == 0

    assert Tracked(mlflow_server.uri, run).history("train/loss") == logged(run.folder, "train/loss")
    assert len(logged(run.folder, "train/loss")) == 35
    assert run.screen.getvalue().count("WARNING") == 1
    assert run.screen.getvalue().count("is back") == 1


def test_a_hung_server_is_left_behind_and_served_later(tmp_path, mlflow_server, capsys):
    run = Run(tmp_path / "tiny", mlflow_server.uri)
    run.write(range(1, 6))
    run.wait_until_sent()
    mlflow_server.send(signal.SIGSTOP)
    try:
        run.write(range(6, 26))
        unsent = run.close(timeout_s=1.5)
    finally:
        mlflow_server.send(signal.SIGCONT)
    assert unsent == 20
    assert f"python -m bt_megatron track {run.folder.path}" in run.screen.getvalue()

    assert main_track([str(run.folder.path)]) == 0
    there = Tracked(mlflow_server.uri, run)
    assert there.history("train/loss") == logged(run.folder, "train/loss")
    assert there.run.info.status == "KILLED"  # no event says that it stopped in order
    assert main_track([str(run.folder.path)]) == 0
    assert "0 records sent" in capsys.readouterr().out


def test_writing_never_touches_the_network(tmp_path, mlflow_server, silent_port):
    run = Run(tmp_path / "tiny", f"http://127.0.0.1:{silent_port}")
    run.write(range(1, 51))
    assert run.close(timeout_s=0.1) == 50
    assert [r["step"] for r in read_records(run.folder.metrics)] == list(range(1, 51))

    assert main_track([str(run.folder.path), "--tracking-uri", mlflow_server.uri]) == 0
    assert Tracked(mlflow_server.uri, run).history("train/loss") == logged(run.folder, "train/loss")


def test_a_run_that_resumes_continues_its_mlflow_run(tmp_path, mlflow_server):
    first = Run(tmp_path / "tiny", mlflow_server.uri)
    first.write(range(1, 31))
    assert first.close() == 0
    run_id, before = first.state["run_id"], logged(first.folder, "train/loss")

    assert rewind(first.folder, step=20) == 10
    second = Run(tmp_path / "tiny", mlflow_server.uri)
    second.write(range(21, 41), speed=2e4)  # the same losses at another speed
    assert second.close() == 0
    there = Tracked(mlflow_server.uri, second)
    assert there.run_id == run_id
    assert there.history("train/loss")[:30] == before
    assert [step for step, _, _ in there.history("train/loss")] == list(range(1, 41))

    rewind(first.folder, step=38)
    third = Run(tmp_path / "tiny", mlflow_server.uri)
    third.write(range(39, 41), loss=5.0)  # another result of the same steps
    assert third.close() == 0
    steps = [step for step, _, _ in Tracked(mlflow_server.uri, third).history("train/loss")]
    assert steps == [*range(1, 39), 39, 39, 40, 40]


def test_what_was_sent_but_not_confirmed_is_not_doubled(tmp_path, mlflow_server):
    first = Run(tmp_path / "tiny", mlflow_server.uri)
    first.write(range(1, 11))
    assert first.close() == 0
    # As if killed right after the server took both, before the answers came.
    state = first.state | {"run_id": None, "metrics_offset": 0}
    run_id = first.state["run_id"]
    first.folder.tracking.write_bytes(orjson.dumps(state))

    second = Run(tmp_path / "tiny", mlflow_server.uri)
    second.write(range(11, 13))
    assert second.close() == 0
    assert second.state["run_id"] == run_id
    there = Tracked(mlflow_server.uri, second)
    for name in ("train/loss", "perf/tokens_per_s"):
        assert there.history(name) == logged(second.folder, name)


def test_a_parameter_that_changes_on_resume_is_a_tag(tmp_path, mlflow_server):
    first = Run(tmp_path / "tiny", mlflow_server.uri)
    assert first.close() == 0
    second = Run(tmp_path / "tiny", mlflow_server.uri, config=CONFIG.replace("100", "200"))
    assert second.close() == 0
    run = Tracked(mlflow_server.uri, second).run
    assert run.data.params["train.steps"] == "100"
    assert run.data.tags["changed.train.steps"] == "200"


def test_without_a_server_everything_is_in_a_database_next_to_the_runs(tmp_path, mlflow_server):
    # An empty database of the right schema, so that the test need not wait for its creation.
    shutil.copy(mlflow_server.empty_database, tmp_path / "mlflow.db")
    run = Run(tmp_path / "tiny", None)
    run.write(range(1, 6))
    assert run.close() == 0
    there = Tracked(f"sqlite:///{tmp_path / 'mlflow.db'}", run)
    assert there.history("train/loss") == logged(run.folder, "train/loss")
    artifacts = tmp_path / "mlflow_artifacts" / "tests" / there.run_id / "artifacts"
    assert (artifacts / "config.resolved.yaml").read_text() == CONFIG


def test_a_damaged_state_is_named(tmp_path):
    (tmp_path / "mlflow.json").write_text('{"schema": 1, "run_id')
    with pytest.raises(DataError, match=r"mlflow.json: not a tracking state"):
        Run(tmp_path, None)


def test_passwords_are_not_shown():
    assert (
        describe(OSError("no http://me:secret@host/x\n  today"))
        == "OSError: no http://host/x today"
    )
