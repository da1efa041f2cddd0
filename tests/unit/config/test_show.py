# SPDX-License-Identifier: Apache-2.0
"""The resolved configuration as text."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bt_megatron.config.load import LoadedConfig, dotted_values, load_run, to_mapping
from bt_megatron.config.show import resolved_yaml, scalar_text

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["C"]), max_size=12),
    st.sampled_from(["yes", "on", "NO", "null", "1e-3", "010", "1:30", "a: b", "#", "-", "Eb|tL"]),
)


@given(scalars)
def test_any_yaml_reader_takes_a_scalar_for_the_same(value):
    found = yaml.safe_load(f"key: {scalar_text(value)}  # comment\n")["key"]

    assert found == value
    assert type(found) is type(value)


def test_the_text_gives_the_same_configuration_again(make_run, write_yaml):
    mixture = {"on": {"path": "a", "weight": 1}, "b-2": {"path": "null", "weight": 2}}
    changes = {"name": "on", "data.path": "C: #1", "optimizer.lr": 1e-8, "data.mixture": mixture}
    config = make_run(changes)
    origins = dict.fromkeys(dotted_values(config), "here.yaml:1")

    text = resolved_yaml(LoadedConfig(config, origins))

    assert load_run([write_yaml("resolved.yaml", text)]).config == config
    assert yaml.safe_load(text) == to_mapping(config)


@pytest.mark.parametrize("line", ["lr: 1.0e-08", "runs_dir: runs", "precision: bf16"])
def test_each_value_has_its_origin_beside_it(make_run, line):
    config = make_run({"optimizer.lr": 1e-8})
    origins = {key: f"origin of {key}" for key in dotted_values(config)}

    lines = resolved_yaml(LoadedConfig(config, origins)).splitlines()

    (found,) = (text for text in lines if text.strip().startswith(line + " "))
    key = line.split(":")[0]
    assert found.partition("# origin of ")[2].split(".")[-1] == key
