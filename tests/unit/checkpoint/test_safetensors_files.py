# SPDX-License-Identifier: Apache-2.0
"""Tensors come back as they were written, from one file or from shards; damage is named."""

import json

import pytest
import torch

from bt_megatron.checkpoint.safetensors_files import (
    INDEX_FILE,
    SINGLE_FILE,
    has_tensors,
    read_tensors,
    write_tensors,
)
from bt_megatron.errors import CheckpointError

TENSORS = {
    "a": torch.arange(600.0).view(20, 30),
    "b": torch.arange(600.0).view(20, 30).T,
    "part": torch.arange(40.0).view(10, 4)[:7],
    "c": torch.ones(500, dtype=torch.bfloat16),
}


def same(read):
    assert set(read) == set(TENSORS)
    assert all(torch.equal(read[name], tensor) for name, tensor in TENSORS.items())


def test_one_file(tmp_path):
    write_tensors(tmp_path, TENSORS)
    assert has_tensors(tmp_path)
    same(read_tensors(tmp_path))
    same(read_tensors(tmp_path / SINGLE_FILE))


def test_shards(tmp_path):
    write_tensors(tmp_path, TENSORS, max_shard_gb=3e-6)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) == 3
    assert has_tensors(tmp_path)
    assert not (tmp_path / SINGLE_FILE).exists()
    same(read_tensors(tmp_path))
    shards[1].unlink()
    with pytest.raises(CheckpointError, match=f"{shards[1].name}: named in"):
        read_tensors(tmp_path)


def test_tied_names_are_stored_once(tmp_path):
    table = torch.ones(100, 8)[:90]
    write_tensors(tmp_path, {"one": table, "two": table})
    assert len(read_tensors(tmp_path)) == 1


def test_others_may_read_the_files(tmp_path):
    write_tensors(tmp_path, TENSORS)
    assert (tmp_path / SINGLE_FILE).stat().st_mode & 0o777 == 0o644


def test_truncated_file(tmp_path):
    write_tensors(tmp_path, TENSORS)
    path = tmp_path / SINGLE_FILE
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        read_tensors(tmp_path)


def test_damaged_index(tmp_path):
    write_tensors(tmp_path, TENSORS, max_shard_gb=3e-6)
    index = tmp_path / INDEX_FILE
    content = json.loads(index.read_text())
    content["weight_map"]["d"] = content["weight_map"]["a"]
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="1 of 5 tensors are in no shard"):
        read_tensors(tmp_path)
    index.write_text("{}")
    with pytest.raises(CheckpointError, match="not an index of shards"):
        read_tensors(tmp_path)


def test_pickled_weights_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="neither model.safetensors"):
        read_tensors(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(CheckpointError, match="It has pytorch_model.bin"):
        read_tensors(tmp_path)
