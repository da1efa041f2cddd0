# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from bt_megatron.errors import ConfigError
from slurm.cluster import load_cluster

CLUSTERS = sorted((Path(__file__).parents[3] / "configs" / "cluster").glob("*.yaml"))


def load(tmp_path, text):
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    return load_cluster(path)


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.stem)
def test_every_cluster_loads(path):
    assert load_cluster(path).name == path.stem


def test_there_is_an_example():
    assert CLUSTERS


def test_an_unknown_key_is_refused_with_its_place(tmp_path):
    with pytest.raises(ConfigError, match=r"cluster.yaml:2: gpu_per_node.*'gpus_per_node'"):
        load(tmp_path, "name: x\ngpu_per_node: 4\ntime_limit_minutes: 60\n")


def test_missing_keys_are_named(tmp_path):
    with pytest.raises(ConfigError, match="missing required keys: name, time_limit_minutes"):
        load(tmp_path, "gpus_per_node: 4\n")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("gpus_per_node: 0", "gpus_per_node is 0"),
        ("time_limit_minutes: -5", "time_limit_minutes is -5"),
        ("stop_before_limit_s: 3600", "stop_before_limit_s .3600. leaves nothing"),
        ("stop_before_limit_s: 5", "stop_before_limit_s is 5, expected 60 or more"),
        ("next_job: again", "next_job.*expected one of requeue, chain"),
        ('setup: "export RANK=0"', "setup sets RANK"),
        ('setup: "export A=1 MASTER_PORT=2"', "setup sets MASTER_PORT"),
        ('setup: "SLURM_NTASKS=3"', "setup sets SLURM_NTASKS"),
        ('container: {image: ""}', "container.image is empty"),
    ],
    ids=[
        *("no GPUs", "negative time", "stops before it starts", "no time to save", "no such way"),
        *("variable of the job", "a second variable", "variable of Slurm", "no image"),
    ],
)
def test_values_that_cannot_be_meant_are_refused(tmp_path, line, message):
    text = "name: x\n" + ("" if "time_limit" in line else "time_limit_minutes: 60\n")
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, f"{text}{line}\n")


def test_variables_that_only_end_alike_are_the_users(tmp_path):
    text = 'name: x\ntime_limit_minutes: 60\nsetup: "export MY_RANK=0"\n'
    assert load(tmp_path, text).setup == "export MY_RANK=0"
