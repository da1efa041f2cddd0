# SPDX-License-Identifier: Apache-2.0
"""Engines on the CPU, in float32, with random weights or those of a transformers model."""

from collections.abc import Callable

import pytest
import torch

from bt_megatron.config.schema import ModelConfig
from bt_megatron.inference.engine.engine import Engine, Settings
from bt_megatron.inference.engine.load import build_model
from bt_megatron.inference.engine.weights import Numbers

CPU = torch.device("cpu")


@pytest.fixture
def make_engine() -> Callable[..., Engine]:
    """Return a function from a model section and its official weights to an engine."""

    def make(model: ModelConfig, state: dict[str, torch.Tensor], **settings) -> Engine:
        chosen = Settings(**{"max_rows": 4, "max_tokens": 160, **settings})
        built = build_model(
            model,
            state,
            numbers=Numbers(torch.float32),
            device=CPU,
            max_tokens=chosen.max_tokens,
        )
        return Engine(built, chosen, CPU)

    return make
