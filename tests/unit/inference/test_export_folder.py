# SPDX-License-Identifier: Apache-2.0
"""Exported folders load with transformers' Auto classes and hold exactly the weights."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPTNeoXForCausalLM

from bt_megatron.checkpoint.names import from_official
from bt_megatron.checkpoint.safetensors_files import read_tensors
from bt_megatron.inference.export_folder import MODELING_FILE, write_model
from tests.golden import BLOCK_MODELS, load_golden


@pytest.fixture(autouse=True)
def _own_module_cache(tmp_path, monkeypatch):
    import transformers.dynamic_module_utils as modules

    monkeypatch.setattr(modules, "HF_MODULES_CACHE", str(tmp_path / "modules"))


def written(tmp_path, name, **options):
    golden = load_golden(name)
    folder = tmp_path / "model"
    folder.mkdir()
    weights = from_official(golden.state, golden.model)
    write_model(folder, weights, golden.model, **{"dtype": "fp32", **options})
    return golden, folder, weights


@pytest.mark.parametrize("name", BLOCK_MODELS)
@torch.no_grad()
def test_block_models(tmp_path, name):
    golden, folder, _ = written(tmp_path, name)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    assert type(model).__module__.startswith("transformers_modules")
    given = golden.case("plain")
    logits = model.forward_blocks(given["input_ids"], given["attention_mask"])
    torch.testing.assert_close(logits, given["logits"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("random", "pads"), [(True, 3), (False, 0)])
def test_models_trained_with_padding_are_told_to_pad(tmp_path, random, pads):
    written(tmp_path, "lookup_prefix_b4_p2", random_left_padding=random)
    load = AutoModelForCausalLM.from_pretrained
    assert load(tmp_path / "model", trust_remote_code=True).config.left_padding == pads
    changed = load(tmp_path / "model", trust_remote_code=True, left_padding=1)
    assert changed.config.left_padding == 1


@torch.no_grad()
def test_vanilla_model_needs_no_code_of_ours(tmp_path):
    golden, folder, _ = written(tmp_path, "vanilla_neox")
    assert not (folder / MODELING_FILE.name).exists()
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert isinstance(model, GPTNeoXForCausalLM)
    given = golden.case("plain")
    logits = model(given["input_ids"]).logits
    torch.testing.assert_close(logits, given["logits"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["lookup_prefix_b4_p2", "roberta_cls_cross_attention_b4"])
def test_bf16_and_back(tmp_path, name):
    golden, folder, weights = written(tmp_path, name, dtype="bf16", max_shard_gb=1e-4)
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    read = from_official(read_tensors(folder), golden.model)
    assert set(read) == set(weights)
    for key, weight in weights.items():
        assert torch.equal(read[key], weight.bfloat16()), key
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert model.dtype == torch.bfloat16


def test_tied_table_is_stored_once(tmp_path):
    _, folder, _ = written(tmp_path, "roberta_cls_cross_attention_b4")
    names = {"token_decoder.shared.weight", "token_decoder.lm_head.weight"}
    assert len(names & set(read_tensors(folder))) <= 1
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert model.token_decoder.lm_head.weight is model.token_decoder.shared.weight


def test_config_says_what_generation_needs(tmp_path):
    _, folder, _ = written(tmp_path, "lookup_prefix_b4_p2", end_id=5, max_length=4096)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert (config.pad_token_id, config.max_position_embeddings) == (5, 4096)
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == generation["pad_token_id"] == 5


@torch.no_grad()
def test_saved_again_by_transformers(tmp_path):
    golden, folder, _ = written(tmp_path, "lookup_prefix_b4_p2", end_id=5)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    model.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", trust_remote_code=True)
    assert again.config.pad_token_id == 5
    given = golden.case("plain")
    logits = again.eval().forward_blocks(given["input_ids"])
    torch.testing.assert_close(logits, given["logits"], atol=1e-5, rtol=0)
