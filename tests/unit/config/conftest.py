# SPDX-License-Identifier: Apache-2.0
"""A small valid run, and a way to change single values of it."""

from pathlib import Path

import pytest

from bt_megatron.config.load import from_mapping, load_run, to_mapping
from bt_megatron.config.schema import RunConfig

ROOT = Path(__file__).parents[3]
STACK = {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4}
SMALL = {
    "name": "small",
    "model": {
        "vocab_size": 512,
        "block_length": 4,
        "embedder": {"hidden_size": 16},
        "block_decoder": STACK,
        "token_decoder": STACK,
    },
    "data": {"path": "data/small", "seq_length": 64},
    "batch": {"global_batch_size": 16, "micro_batch_size": 2},
    "optimizer": {"warmup_steps": 10},
    "train": {"steps": 100},
}


@pytest.fixture
def make_run():
    """Return a function: dotted keys to new values -> RunConfig."""

    def make(changes=None, base=None):
        mapping = to_mapping(from_mapping(RunConfig, SMALL, "small")) if base is None else base
        for key, value in (changes or {}).items():
            *parents, last = key.split(".")
            section = mapping
            for parent in parents:
                section = section[parent]
            section[last] = value
        return from_mapping(RunConfig, mapping, "test")

    return make


@pytest.fixture
def write_yaml(tmp_path):
    """Return a function that writes text to a file below a fresh folder."""

    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


@pytest.fixture
def load_published():
    """Return a function: name of a file in configs/model -> RunConfig with that model."""

    def load(name, *, micro_batch_size):
        return load_run(
            [ROOT / "configs/data/pile.yaml", ROOT / f"configs/model/{name}.yaml"],
            ["name=x", "train.steps=1", f"batch.micro_batch_size={micro_batch_size}"],
        ).config

    return load
