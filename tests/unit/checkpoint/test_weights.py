# SPDX-License-Identifier: Apache-2.0
"""Weights folders come back as they were written; what is not one is named."""

import pytest
import torch

from bt_megatron.checkpoint.names import from_official
from bt_megatron.checkpoint.weights import MODEL_FILE, SOURCE_FILE, read_weights, write_weights
from bt_megatron.errors import CheckpointError, ConfigError
from tests.golden import BLOCK_MODELS, load_golden


@pytest.mark.parametrize("name", [*BLOCK_MODELS, "vanilla_neox"])
def test_round_trip(tmp_path, name):
    golden = load_golden(name)
    weights = from_official(golden.state, golden.model)
    folder = tmp_path / "weights"
    write_weights(folder, weights, golden.model, info={"step": 7, "run": "r"})
    read, model, info = read_weights(folder)
    assert model == golden.model
    assert info == {"path": str(folder), "step": 7, "run": "r"}
    assert set(read) == set(weights)
    assert all(torch.equal(read[key], weight) for key, weight in weights.items())


def small_folder(tmp_path, **options):
    folder = tmp_path / "weights"
    write_weights(folder, {"a": torch.ones(2)}, load_golden("vanilla_neox").model, **options)
    return folder


def test_tokenizer_travels_along(tmp_path):
    tokenizer = tmp_path / "some.json"
    tokenizer.write_text("{}")
    folder = small_folder(tmp_path, tokenizer=tokenizer)
    _, _, info = read_weights(folder)
    assert info["tokenizer"] == str(folder / "tokenizer.json")


def test_folder_made_by_hand(tmp_path):
    folder = small_folder(tmp_path)
    (folder / SOURCE_FILE).unlink()
    assert read_weights(folder)[2] == {"path": str(folder)}


def test_damaged_source(tmp_path):
    folder = small_folder(tmp_path)
    (folder / SOURCE_FILE).write_text("{")
    with pytest.raises(CheckpointError, match="not an object in JSON"):
        read_weights(folder)


def test_wrong_model_section(tmp_path):
    folder = small_folder(tmp_path)
    text = (folder / MODEL_FILE).read_text()
    (folder / MODEL_FILE).write_text(text.replace("vocab_size", "vocab_sizes"))
    with pytest.raises(ConfigError, match="Did you mean 'vocab_size'"):
        read_weights(folder)


def test_what_is_no_source(tmp_path):
    with pytest.raises(CheckpointError, match="neither a weights folder"):
        read_weights(tmp_path)


def test_existing_folder(tmp_path):
    folder = small_folder(tmp_path)
    with pytest.raises(CheckpointError, match="exists already"):
        small_folder(tmp_path)
    assert read_weights(folder)[0].keys() == {"a"}


def test_unfinished_checkpoint_of_a_run_is_not_read(tmp_path):
    (tmp_path / "checkpoints" / "step_00000010").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="nor a run with a complete one"):
        read_weights(tmp_path)
