# SPDX-License-Identifier: Apache-2.0
"""A run that takes seconds: real text, a small vocabulary, a small model."""

from pathlib import Path

import orjson
import zstandard

from bt_megatron.config.schema import (
    BatchConfig,
    CheckpointConfig,
    DataConfig,
    DecoderConfig,
    EmbedderConfig,
    EvaluationConfig,
    LayoutConfig,
    LogConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TokenDecoderConfig,
    TrainConfig,
)
from data_prep.__main__ import main as data_prep

VOCABULARY = 512
TEXTS = 24
CHARACTERS = 3_000


def make_data(folder: Path, sample: Path) -> Path:
    """Tokenize the beginnings of some documents of the sample corpus."""
    lines = zstandard.ZstdDecompressor().stream_reader(sample.open("rb")).read().splitlines()
    text = folder / "text.jsonl"
    with text.open("wb") as file:
        for line in lines[:TEXTS]:
            document = orjson.loads(line)
            document["text"] = document["text"][:CHARACTERS]
            file.write(orjson.dumps(document) + b"\n")
    tokenizer, data = folder / "tokenizer.json", folder / "tokens"
    vocabulary = ["--vocab-size", str(VOCABULARY), "--out", str(tokenizer)]
    assert data_prep(["train-tokenizer", str(text), *vocabulary]) == 0
    assert (
        data_prep(["tokenize", str(text), "--tokenizer", str(tokenizer), "--out", str(data)]) == 0
    )
    return data


def tiny_model(**changes: object) -> ModelConfig:
    """Return a block model of two plus two layers, 64 wide."""
    stack = {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4}
    model = {
        "vocab_size": VOCABULARY,
        "embedder": EmbedderConfig(hidden_size=16),
        "block_decoder": DecoderConfig(**stack),
        "token_decoder": TokenDecoderConfig(**stack),
    }
    return ModelConfig(**{**model, **changes})


def tiny_run(data: Path, runs_dir: Path, **changes: object) -> RunConfig:
    """Return a run of 20 steps that saves every 5."""
    run = {
        "name": "tiny",
        "runs_dir": str(runs_dir),
        "model": tiny_model(),
        "data": DataConfig(path=str(data), seq_length=64, validation_fraction=0.2),
        "batch": BatchConfig(global_batch_size=4, micro_batch_size=1),
        "optimizer": OptimizerConfig(lr=3e-3, warmup_steps=4),
        "layout": LayoutConfig(),
        "train": TrainConfig(steps=20, precision="fp32"),
        "evaluation": EvaluationConfig(interval_steps=10, max_sequences=8),
        "checkpoint": CheckpointConfig(interval_steps=5),
        "log": LogConfig(interval_steps=1, mlflow=None),
    }
    return RunConfig(**{**run, **changes})
