# SPDX-License-Identifier: Apache-2.0
"""mlflow.json: what is continued, what begins anew."""

from dataclasses import replace
from pathlib import Path

import pytest

from bt_megatron.observe.run_folder import RunFolder
from bt_megatron.observe.tracking_state import (
    TrackingState,
    artifact_location,
    continue_state,
    load_state,
    resolve_uri,
    save_state,
)

STATE = TrackingState(
    tracking_uri="http://tracker:5000",
    experiment="e",
    run_key="key",
    run_id="id",
    metrics_offset=30,
)


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.metrics.write_bytes(b"x" * 100)
    return folder


def test_the_state_survives_the_file(folder):
    assert load_state(folder) is None
    save_state(folder, STATE)
    assert load_state(folder) == STATE


def test_the_same_place_is_continued(folder):
    save_state(folder, STATE)
    assert continue_state(folder, tracking_uri="http://tracker:5000", experiment="e") == STATE


def test_after_a_rewind_nothing_new_is_skipped(folder):
    save_state(folder, replace(STATE, metrics_offset=90))
    folder.metrics.write_bytes(b"x" * 40)
    state = continue_state(folder, tracking_uri="http://tracker:5000", experiment="e")
    assert state == replace(STATE, metrics_offset=40)


@pytest.mark.parametrize(
    ("uri", "experiment"),
    [(None, "e"), ("http://other:5000", "e"), ("http://tracker:5000", "f")],
    ids=["default", "server", "experiment"],
)
def test_another_place_gets_everything(folder, uri, experiment):
    save_state(folder, STATE)
    state = continue_state(folder, tracking_uri=uri, experiment=experiment)
    assert (state.run_id, state.metrics_offset) == (None, 0)
    assert state.run_key != STATE.run_key


def test_the_default_is_a_database_next_to_the_run(folder, monkeypatch):
    monkeypatch.chdir(folder.path.parent)
    here = RunFolder(Path("run"))
    state = replace(STATE, tracking_uri=None)
    assert resolve_uri(state, here) == f"sqlite:///{folder.path.parent}/mlflow.db"
    assert artifact_location(state, here) == f"file://{folder.path.parent}/mlflow_artifacts/e"
    assert artifact_location(STATE, here) is None
