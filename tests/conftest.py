# SPDX-License-Identifier: Apache-2.0
"""Fixtures that more than one folder of tests uses."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

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
