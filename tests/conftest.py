# SPDX-License-Identifier: Apache-2.0
"""Fixtures that more than one folder of tests uses."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.mlflow_server import MlflowServer

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data folder of real text with a vocabulary of 512."""
    from tests.tiny_run import make_data

    (sample,) = (ROOT / "data_prep" / "sample").glob("*.jsonl.zst")
    return make_data(tmp_path_factory.mktemp("tiny"), sample)


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """Return a real MLflow server that tests may kill, stop and restart."""
    server = MlflowServer(tmp_path_factory.mktemp("mlflow-server"))
    server.start()
    try:
        server.create_database()  # meanwhile: the server opens it at the first request
        server.wait()
        yield server
    finally:
        server.kill()
