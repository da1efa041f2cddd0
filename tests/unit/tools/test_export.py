# SPDX-License-Identifier: Apache-2.0
"""Exports appear only after their logits were found equal to those of another model.

The comparison model is built here from the reference's own tensors; the trainer's
model takes its place in tests/e2e/test_exported_folder.py.
"""

import json

import pytest
import torch

from bt_megatron.checkpoint.hf_config import block_fields
from bt_megatron.checkpoint.names import from_official, to_official
from bt_megatron.checkpoint.weights import write_weights
from bt_megatron.errors import CheckpointError, ConversionError
from bt_megatron.inference.modeling_block_transformer import (
    BlockTransformerConfig,
    BlockTransformerForCausalLM,
)
from tests.golden import load_golden
from tests.small_tokenizer import write_small_tokenizer
from tools.export import ExportOptions, export, main


@pytest.fixture(autouse=True)
def _own_module_cache(tmp_path, monkeypatch):
    import transformers.dynamic_module_utils as modules

    monkeypatch.setattr(modules, "HF_MODULES_CACHE", str(tmp_path / "modules"))


@pytest.fixture
def source(tmp_path):
    golden = load_golden("lookup_prefix_b4_p2")
    folder = tmp_path / "weights"
    tokenizer = write_small_tokenizer(tmp_path / "tokenizer.json")
    info = {"step": 40, "run": "small", "eos_id": 0, "seq_length": 256, "random_left_padding": True}
    weights = from_official(golden.state, golden.model)
    write_weights(folder, weights, golden.model, info=info, tokenizer=tokenizer)
    return folder


@torch.no_grad()
def logits_of(weights, model, tokens):
    block_transformer = BlockTransformerForCausalLM(BlockTransformerConfig(**block_fields(model)))
    block_transformer.load_state_dict(to_official(weights, model))
    blocks = tokens.unflatten(1, (-1, model.block_length))
    return block_transformer.eval().forward_blocks(blocks).flatten(1, 2)


def test_what_is_in_the_folder(tmp_path, source):
    stages = []
    options = ExportOptions(dtype="fp32")
    out = tmp_path / "out"
    done = export(source, out, options, logits_of=logits_of, report=stages.append)
    assert done.difference < 1e-5
    assert done.agreement == 1
    names = {path.name for path in out.iterdir()}
    assert names == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "modeling_block_transformer.py",
        "source.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert "| step | 40 |" in (out / "README.md").read_text()
    assert json.loads((out / "source.json").read_text()) == {"run": "small", "step": 40}
    assert json.loads((out / "tokenizer_config.json").read_text())["model_max_length"] == 256
    assert json.loads((out / "config.json").read_text())["left_padding"] == 3
    assert stages[-1] == "comparing with the trainer's model"


def test_rounding_to_bf16_is_told(tmp_path, source):
    done = export(source, tmp_path / "out", ExportOptions(), logits_of=logits_of)
    assert done.difference < 1e-4
    assert 1e-3 < done.rounding < 1


def test_a_model_that_differs_is_not_exported(tmp_path, source):
    def another(weights, model, tokens):
        changed = dict(weights)
        name = "block_decoder.layers.0.self_attention.linear_qkv.weight"
        changed[name] = changed[name].flip(0)
        return logits_of(changed, model, tokens)

    with pytest.raises(ConversionError, match=r"differ from the trainer's by .*, allowed are"):
        export(source, tmp_path / "out", ExportOptions(), logits_of=another)
    assert sorted(path.name for path in tmp_path.iterdir() if "out" in path.name) == []


def test_an_existing_folder_is_refused_before_any_work(tmp_path, source):
    with pytest.raises(CheckpointError, match="exists already"):
        export(tmp_path / "nothing", tmp_path, ExportOptions(), logits_of=logits_of)


def test_overwriting_replaces_exports_only(tmp_path, source):
    out = tmp_path / "out"
    options = ExportOptions(dtype="fp32", overwrite=True)
    export(source, out, ExportOptions(), logits_of=logits_of)
    export(source, out, options, logits_of=logits_of)
    assert json.loads((out / "config.json").read_text())["dtype"] == "float32"
    (out / "config.json").unlink()
    with pytest.raises(CheckpointError, match="exists already"):
        export(source, out, options, logits_of=logits_of)


def test_a_tokenizer_that_is_not_the_model_s(tmp_path, source):
    large = write_small_tokenizer(tmp_path / "large.json", vocab_size=300, end="</s>")
    options = ExportOptions(tokenizer=large, eos_token="<eos>")
    with pytest.raises(ConversionError, match="has no token '<eos>'"):
        export(source, tmp_path / "out", options, logits_of=logits_of)
    options = ExportOptions(tokenizer=tmp_path / "absent.json")
    with pytest.raises(ConversionError, match="absent.json: not there"):
        export(source, tmp_path / "out", options, logits_of=logits_of)


def test_errors_are_one_line(tmp_path, capsys):
    assert main([str(tmp_path / "nothing"), str(tmp_path / "out")]) == 5
    assert capsys.readouterr().err.strip().startswith("error: ")
    assert not (tmp_path / "out").exists()
