# SPDX-License-Identifier: Apache-2.0
import json
from dataclasses import replace

import pytest

from bt_megatron.config.load import load_run
from bt_megatron.config.schema import LogConfig
from bt_megatron.errors import DataError
from bt_megatron.observe.run_folder import RunFolder
from tools.demo import CONFIG, ROOT
from tools.demo_summary import summary

RECORDS = [
    {"step": 10, "train/loss": 5.0, "perf/tokens_per_s_average": 1000.0},
    {"step": 10, "validation/loss": 4.5, "validation/bits_per_byte": 1.7},
    {"step": 20, "train/loss": 4.0, "perf/tokens_per_s_average": 12345.6},
    {"step": 20, "validation/loss": 4.25, "validation/bits_per_byte": 1.5},
]
BASELINES = {
    "unigram": {"loss": 6.6, "bits_per_byte": 2.3},
    "bigram": {"loss": 4.6, "bits_per_byte": None},
}


@pytest.fixture
def config(tmp_path):
    config = load_run([ROOT / CONFIG], [f"runs_dir={tmp_path}"]).config
    folder = RunFolder.of(config)
    folder.path.mkdir()
    folder.metrics.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    folder.baselines.write_text(json.dumps({"models": BASELINES}))
    return config


def test_the_last_losses_stand_beside_the_baselines(config):
    lines = summary(config, {"a": 1.0})

    assert "validation, this model     4.2500 nats/token  1.5000 bits/byte" in lines
    assert "validation, bigram model   4.6000 nats/token  n/a bits/byte" in lines
    assert "validation, unigram model  6.6000 nats/token  2.3000 bits/byte" in lines
    assert "trained at 12,346 tokens/s" in lines


def test_times_are_told_and_summed(config):
    lines = summary(config, {"tokenize": 12.34, "train": 100.0})

    assert "   12.3 s  tokenize" in lines
    assert "  112.3 s  in all" in lines


def test_mlflow_is_shown_where_it_is(config):
    assert f"mlflow ui --backend-store-uri sqlite:///{config.runs_dir}/mlflow.db" in summary(
        config, {}
    )


def test_no_mlflow_command_without_tracking(config):
    lines = summary(replace(config, log=LogConfig(mlflow=None)), {})

    assert "MLflow         off" in lines
    assert not any(line.startswith("mlflow ui") for line in lines)


@pytest.mark.parametrize("name", ["metrics", "baselines"])
def test_a_missing_file_is_named(config, name):
    path = getattr(RunFolder.of(config), name)
    path.write_text("")
    with pytest.raises(DataError, match=path.name):
        summary(config, {})
