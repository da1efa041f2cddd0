# SPDX-License-Identifier: Apache-2.0
"""Files, settings and plain mappings to configurations."""

import dataclasses
from typing import get_args, get_origin

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bt_megatron.config.convert import field_types, schema_keys, split_optional
from bt_megatron.config.load import (
    dotted_values,
    from_mapping,
    load_model,
    load_run,
    to_mapping,
)
from bt_megatron.config.schema import (
    DecoderConfig,
    EmbedderConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
)
from bt_megatron.errors import ConfigError

RUN = """\
name: x
model:
  vocab_size: 512
  embedder: {hidden_size: 16}
  block_decoder: &stack {num_layers: 2, hidden_size: 64, num_attention_heads: 4}
  token_decoder: *stack
data:
  path: data/x
train:
  steps: 100
"""


def test_a_run_is_loaded_with_its_origins(write_yaml):
    path = write_yaml("x.yaml", RUN)

    loaded = load_run([path], ["optimizer.lr=1e-3", "train.steps=200"])

    assert loaded.config.model.block_decoder == DecoderConfig(
        num_layers=2, hidden_size=64, num_attention_heads=4
    )
    assert loaded.config.optimizer.lr == 1e-3
    assert loaded.config.train.steps == 200
    assert loaded.provenance["name"] == f"{path}:1"
    assert loaded.provenance["model.vocab_size"] == f"{path}:3"
    assert loaded.provenance["optimizer.lr"] == "--set"
    assert loaded.provenance["train.steps"] == "--set"
    assert loaded.provenance["optimizer.adam_eps"] == "default"
    assert loaded.provenance["log.mlflow.experiment"] == "default"
    assert loaded.provenance["model.decoder"] == "default"


def test_every_value_has_an_origin(write_yaml):
    loaded = load_run([write_yaml("x.yaml", RUN)])

    assert list(loaded.provenance) != []
    assert set(loaded.provenance) == set(dotted_values(loaded.config))


def test_the_last_setting_wins(write_yaml):
    path = write_yaml("x.yaml", RUN)

    loaded = load_run([path], ["layout.tp=2", "layout.tp=4", "log.mlflow=null"])

    assert loaded.config.layout.tp == 4
    assert loaded.config.log.mlflow is None
    assert loaded.provenance["log.mlflow"] == "--set"


def test_all_problems_are_reported_together(write_yaml):
    path = write_yaml("x.yaml", "name: x\ntrain: {step: 3, seed: yes}\nlr: 3\nmodel: 5\n")

    with pytest.raises(ConfigError) as caught:
        load_run([path])

    message = str(caught.value)
    assert f"{path}:2: train.step: unknown key. Did you mean 'steps'?" in message
    assert f"{path}:2: train.seed: got 'yes' (text), expected a whole number." in message
    assert f"{path}:3: lr: unknown key. Did you mean 'optimizer.lr'?" in message
    assert f"{path}:4: model: got 5 (a whole number), expected a mapping with" in message
    assert "missing required keys: train.steps." in message
    assert "has 5 problems" in message


def test_missing_keys_are_listed_at_once(write_yaml):
    with pytest.raises(ConfigError, match="name, model.vocab_size, train.steps"):
        load_run([write_yaml("x.yaml", "")])


def test_missing_keys_of_an_optional_section_are_listed(write_yaml):
    path = write_yaml("x.yaml", RUN)

    with pytest.raises(ConfigError, match="model.decoder.num_layers, model.decoder.hidden_size"):
        load_run([path], ["model.decoder.num_attention_heads=2"])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("layout.tpp=2", r"--set: layout.tpp: unknown key. Did you mean 'tp'\?"),
        ("zzz=1", r"--set: zzz: unknown key. Known here: name, runs_dir"),
        ("include=[a.yaml]", "include: unknown key"),
        ("hidden_size=3", "Did you mean 'model.embedder.hidden_size' or"),
        ("layout=null", "layout: got null, expected a mapping with tp"),
        ("layout.tp={a: 1}", "layout.tp: got a mapping, expected a whole number"),
        ("train.precision=fp8", "expected one of fp32, bf16"),
        ("train.steps=null", "train.steps: got null"),
    ],
)
def test_a_wrong_setting_says_what_was_meant(write_yaml, setting, message):
    with pytest.raises(ConfigError, match=message):
        load_run([write_yaml("x.yaml", RUN)], [setting])


def test_a_model_file_is_loaded_alone(write_yaml):
    model = load_model(write_yaml("m.yaml", RUN.split("data:")[0].replace("name: x\n", "")))

    assert model.vocab_size == 512
    with pytest.raises(ConfigError, match="there is no section 'model'"):
        load_model(write_yaml("n.yaml", "name: x\n"))


def test_a_mapping_is_loaded_as_strictly_as_a_file():
    model = from_mapping(ModelConfig, {"vocab_size": 8, "init_std": "1e-2"}, "manifest.json")
    assert model.init_std == 1e-2

    with pytest.raises(ConfigError, match="manifest.json: vocab_sise: unknown key"):
        from_mapping(ModelConfig, {"vocab_sise": 8}, "manifest.json")
    with pytest.raises(ConfigError, match="manifest.json: missing required keys: vocab_size"):
        from_mapping(ModelConfig, {}, "manifest.json")


def values_of(hint):
    """Draw a value of any type that the schema uses."""
    inner, optional = split_optional(hint)
    if dataclasses.is_dataclass(inner):
        drawn = st.fixed_dictionaries({k: values_of(h) for k, h in field_types(inner).items()})
    elif get_origin(inner) is dict:
        names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,8}", fullmatch=True)
        drawn = st.dictionaries(names, values_of(get_args(inner)[1]), max_size=3)
    elif inner in (int, float, bool, str):
        drawn = {
            int: st.integers(-(10**9), 10**9),
            float: st.floats(allow_nan=False, allow_infinity=False),
            bool: st.booleans(),
            str: st.text(max_size=8),
        }[inner]
    else:
        drawn = st.sampled_from(inner.__args__)
    return st.none() | drawn if optional else drawn


@pytest.mark.parametrize("cls", [RunConfig, OptimizerConfig, EmbedderConfig])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_configuration_survives_as_a_mapping(cls, data):
    mapping = data.draw(values_of(cls))
    config = from_mapping(cls, mapping, "drawn")

    assert to_mapping(config) == mapping
    assert from_mapping(cls, yaml.safe_load(yaml.safe_dump(mapping)), "yaml") == config


def test_dotted_values_cover_the_schema(make_run):
    config = make_run()
    missing = set(schema_keys(RunConfig)) - set(dotted_values(config))

    assert {key.rsplit(".", 1)[0] for key in missing} == {"model.decoder"}


MIXTURE = """\
data:
  mixture:
    pile: {path: /data/pile, weight: 3}
    code-2: {path: /data/code, weight: 1, max_epochs: 2.5}
"""


def test_a_mapping_of_names_is_composed_key_by_key(write_yaml):
    paths = [write_yaml("x.yaml", RUN), write_yaml("mixture.yaml", MIXTURE)]

    loaded = load_run(paths, ["data.path=null", "data.mixture.pile.weight=1.5"])

    subsets = loaded.config.data.mixture
    assert [(name, s.path, s.weight, s.max_epochs) for name, s in subsets.items()] == [
        ("pile", "/data/pile", 1.5, None),
        ("code-2", "/data/code", 1.0, 2.5),
    ]
    assert loaded.provenance["data.mixture.pile.weight"] == "--set"
    assert loaded.provenance["data.mixture.code-2.path"].endswith("mixture.yaml:4")
    assert set(loaded.provenance) == set(dotted_values(loaded.config))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {mixture: {a: {path: x, weights: 1}}}", "a.weights: unknown key. Did you mean 'w"),
        ("data: {mixture: {a: {path: x}}}", "missing required keys: data.mixture.a.weight"),
        ("data: {mixture: {a: 3}}", "data.mixture.a: got 3 .* expected a mapping with path"),
        ("data: {mixture: 3}", "data.mixture: got 3 .* expected a mapping"),
        ("data: {mixture: {a.b: {path: x, weight: 1}}}", "got the name 'a.b', expected letters"),
    ],
    ids=["unknown key", "missing key", "no section", "no mapping", "name with a dot"],
)
def test_a_mapping_of_names_is_as_strict(write_yaml, text, message):
    with pytest.raises(ConfigError, match=message):
        load_run([write_yaml("x.yaml", RUN), write_yaml("y.yaml", text)])
