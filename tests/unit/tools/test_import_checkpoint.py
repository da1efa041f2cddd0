# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of others become weights folders; what cannot be is refused in one line."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file

from bt_megatron.checkpoint.hf_config import gpt_neox_fields
from bt_megatron.checkpoint.names import from_official
from bt_megatron.checkpoint.weights import read_weights
from bt_megatron.config.load import to_mapping
from bt_megatron.inference.export_folder import write_model
from tests.golden import REFERENCE, block_model, load_golden
from tools.import_checkpoint import main

OFFICIAL = REFERENCE / "lookup_prefix_b4_p2" / "state_dict.safetensors"


def assert_weights(folder, golden, *, model=None):
    weights, found, info = read_weights(folder)
    expected = from_official(golden.state, golden.model)
    assert found == (model or golden.model)
    assert set(weights) == set(expected)
    assert all(torch.equal(weights[name], weight) for name, weight in expected.items())
    return info


@pytest.mark.parametrize("as_folder", [True, False], ids=["folder", "file"])
def test_official_block_checkpoint(tmp_path, capsys, as_folder):
    source = OFFICIAL
    if as_folder:
        source = tmp_path / "checkpoint-285000"
        source.mkdir()
        shutil.copyfile(OFFICIAL, source / "model.safetensors")
    out = tmp_path / "weights"
    assert main([str(source), str(out), "--num-attention-heads", "4"]) == 0
    info = assert_weights(out, load_golden("lookup_prefix_b4_p2"))
    assert info["imported_from"] == str(source)
    assert "block model, 282,240 parameters" in capsys.readouterr().out


def vanilla_folder(tmp_path, state=None):
    golden = load_golden("vanilla_neox")
    source = tmp_path / "pythia"
    source.mkdir()
    config = {"model_type": "gpt_neox", **gpt_neox_fields(golden.model)}
    (source / "config.json").write_text(json.dumps(config))
    path = REFERENCE / "vanilla_neox" / "state_dict.safetensors" if state is None else state
    shutil.copyfile(path, source / "model.safetensors")
    return source


def test_gpt_neox_checkpoint(tmp_path):
    source = vanilla_folder(tmp_path)
    (source / "tokenizer.json").write_text("{}")
    assert main([str(source), str(tmp_path / "weights")]) == 0
    info = assert_weights(tmp_path / "weights", load_golden("vanilla_neox"))
    assert info["tokenizer"] == str(tmp_path / "weights" / "tokenizer.json")


@pytest.mark.parametrize("name", ["roberta_cls_cross_attention_b4", "vanilla_neox"])
@pytest.mark.parametrize("max_shard_gb", [5, 1e-4], ids=["one file", "shards"])
def test_our_own_export(tmp_path, name, max_shard_gb):
    golden = load_golden(name)
    source = tmp_path / "exported"
    source.mkdir()
    weights = from_official(golden.state, golden.model)
    write_model(source, weights, golden.model, dtype="fp32", max_shard_gb=max_shard_gb)
    assert main([str(source), str(tmp_path / "weights")]) == 0
    assert_weights(tmp_path / "weights", golden)


def uptrain(tmp_path, **changes):
    folder = REFERENCE / "uptrain_partition_b4_p2"
    spec = json.loads((folder / "config.json").read_text())["spec"]
    target = to_mapping(block_model({"vocab_size": 512, **spec}))
    for section in ("block_decoder", "token_decoder"):
        target[section] |= changes
    path = tmp_path / "target.yaml"
    path.write_text(yaml.safe_dump({"model": target}))
    source = vanilla_folder(tmp_path, folder / "vanilla_state_dict.safetensors")
    return main([str(source), str(tmp_path / "weights"), "--uptrain-to", str(path)])


def test_uptraining(tmp_path):
    assert uptrain(tmp_path) == 0
    weights, model, info = read_weights(tmp_path / "weights")
    folder = REFERENCE / "uptrain_partition_b4_p2"
    vanilla = load_file(folder / "vanilla_state_dict.safetensors")
    assert info["uptrain_method"] == "partition"
    assert model.embedder.projection
    assert torch.equal(weights["head.weight"], vanilla["embed_out.weight"])
    name = "mlp.linear_fc1.weight"
    third = vanilla["gpt_neox.layers.2.mlp.dense_h_to_4h.weight"]
    assert torch.equal(weights[f"token_decoder.layers.0.{name}"], third)


def test_scrambled_heads_are_refused(tmp_path, capsys):
    assert uptrain(tmp_path, num_attention_heads=8) == 6
    assert "would be scrambled" in capsys.readouterr().err
    assert not (tmp_path / "weights").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nothing"], 6, "nothing: not there"),
        ([str(REFERENCE / "lr_schedule")], 5, "neither model.safetensors"),
        ([str(REFERENCE / "vanilla_neox" / "state_dict.safetensors")], 6, "model_type is None"),
        ([str(OFFICIAL), "--num-attention-heads", "5"], 6, "do not divide its width 64"),
    ],
    ids=["missing", "no tensors", "no model type", "heads"],
)
def test_what_is_refused(tmp_path, capsys, arguments, code, message):
    source, *options = arguments
    out = tmp_path / "weights"
    found = main([source, str(out), *options])
    error = capsys.readouterr().err
    assert (found, error.count("error: ")) == (code, 1)
    assert message in error
    assert not out.exists()


def test_vanilla_tensors_need_their_config(tmp_path, capsys):
    source = vanilla_folder(tmp_path)
    (source / "config.json").unlink()
    assert main([str(source), str(tmp_path / "weights")]) == 6
    assert "A GPT-NeoX checkpoint needs its config.json" in capsys.readouterr().err


def test_heads_of_a_config_are_not_overridden(tmp_path, capsys):
    source = vanilla_folder(tmp_path)
    arguments = [str(source), str(tmp_path / "weights"), "--num-attention-heads", "8"]
    assert main(arguments) == 6
    assert "--num-attention-heads: config.json tells this already" in capsys.readouterr().err


def test_an_existing_folder_is_kept(tmp_path, capsys):
    (tmp_path / "mine").write_text("x")
    assert main([str(OFFICIAL), str(tmp_path), "--num-attention-heads", "4"]) == 5
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "mine").read_text() == "x"
