# SPDX-License-Identifier: Apache-2.0
"""Uptraining starts exactly where the reference's `partition` starts."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from bt_megatron.checkpoint.names import from_official, to_official
from bt_megatron.checkpoint.uptrain import partition
from bt_megatron.errors import ConversionError
from tests.golden import REFERENCE, block_model, vanilla_model

FOLDER = REFERENCE / "uptrain_partition_b4_p2"
CONFIG = json.loads((FOLDER / "config.json").read_text())
TARGET = block_model({"vocab_size": 512, **CONFIG["spec"]})
VANILLA = vanilla_model(CONFIG["vanilla"])
OWN_NORM = "block_decoder.gpt_neox.final_layer_norm."


@pytest.fixture(scope="module")
def vanilla_state():
    return load_file(FOLDER / "vanilla_state_dict.safetensors")


def test_equals_the_reference(vanilla_state):
    made = to_official(partition(from_official(vanilla_state, VANILLA), VANILLA, TARGET), TARGET)
    copied = CONFIG["copied_from_vanilla"]
    tensors = load_file(FOLDER / "tensors.safetensors")
    created = {k.removeprefix("state."): v for k, v in tensors.items() if k.startswith("state.")}
    for name, weight in made.items():
        if name.startswith(OWN_NORM):
            assert torch.equal(weight, torch.full_like(weight, float(name.endswith("weight"))))
        elif name in copied:
            assert torch.equal(weight, vanilla_state[copied[name]]), name
        else:
            assert torch.equal(weight, created[name]), name
    assert set(made) >= set(copied)


def test_result_shares_no_memory_with_its_source(vanilla_state):
    weights = from_official(vanilla_state, VANILLA)
    made = partition(weights, VANILLA, TARGET)
    assert made["embedder.table.weight"].data_ptr() != made["token_embedding.weight"].data_ptr()


def test_precision_is_kept(vanilla_state):
    weights = {k: v.bfloat16() for k, v in from_official(vanilla_state, VANILLA).items()}
    assert {v.dtype for v in partition(weights, VANILLA, TARGET).values()} == {torch.bfloat16}


def decoders(**changes):
    return replace(
        TARGET,
        block_decoder=replace(TARGET.block_decoder, **changes),
        token_decoder=replace(TARGET.token_decoder, **changes),
    )


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (decoders(num_attention_heads=8), r"is 8, the vanilla model's is 4; .* be scrambled"),
        (decoders(num_layers=1), r"\(1\) \+ token_decoder.num_layers \(1\) is not .* \(4\)"),
        (decoders(hidden_size=128), "hidden_size is 128, the vanilla model's is 64"),
        (decoders(residual="sequential"), "residual is sequential"),
        (replace(TARGET, vocab_size=600), "vocab_size is 600"),
        (replace(TARGET, embedder=replace(TARGET.embedder, projection=False)), "projection: true"),
        (replace(TARGET, embedder=replace(TARGET.embedder, hidden_size=16)), "tables are 64 wide"),
        (
            replace(TARGET, token_decoder=replace(TARGET.token_decoder, strategy="summation")),
            "strategy is summation",
        ),
        (VANILLA, "the target a vanilla model"),
    ],
    ids=[
        "heads",
        "depth",
        "width",
        "layers",
        "vocabulary",
        "projection",
        "table",
        "prefix",
        "kind",
    ],
)
def test_models_that_do_not_fit(vanilla_state, target, message):
    with pytest.raises(ConversionError, match=message):
        partition(from_official(vanilla_state, VANILLA), VANILLA, target)


def test_all_misfits_are_listed(vanilla_state):
    target = replace(decoders(num_attention_heads=8, num_layers=3), vocab_size=9)
    with pytest.raises(ConversionError) as error:
        partition(from_official(vanilla_state, VANILLA), VANILLA, target)
    assert str(error.value).count("\n  - ") == 4
