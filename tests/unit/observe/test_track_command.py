# SPDX-License-Identifier: Apache-2.0
"""The track command: errors are one line with a remedy. (test_mlflow_forwarder.py sends.)"""

import socket

import pytest

from bt_megatron.observe.track_command import main_track


def test_a_folder_that_is_no_run_is_an_error(tmp_path, capsys):
    assert main_track([str(tmp_path)]) == 4
    assert "not the folder of a run (it has no metrics.jsonl)" in capsys.readouterr().err
    assert main_track([str(tmp_path / "none")]) == 4
    assert "no such folder" in capsys.readouterr().err


@pytest.mark.xdist_group("mlflow")
def test_a_server_that_is_not_there_is_an_error(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "time": 1.0, "train/loss": 2.0}\n')
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        uri = f"http://me:secret@127.0.0.1:{probe.getsockname()[1]}"
        assert main_track([str(tmp_path), "--tracking-uri", uri]) == 1
    error = capsys.readouterr().err
    assert "MLflow did not take 1 of 1 records" in error
    assert "Traceback" not in error
    assert "secret" not in error
