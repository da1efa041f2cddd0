# SPDX-License-Identifier: Apache-2.0
"""Small random Block Transformers of every kind."""

from collections.abc import Callable

import pytest
import torch

from bt_megatron.inference.modeling_block_transformer import (
    BlockTransformerConfig,
    BlockTransformerForCausalLM,
)
from tests.small_models import small_config


@pytest.fixture
def make_model() -> Callable[..., BlockTransformerForCausalLM]:
    """Return a function from changes of the configuration to a model in evaluation mode."""

    def make(**changes):
        torch.manual_seed(0)
        model = BlockTransformerForCausalLM(BlockTransformerConfig(**small_config(**changes)))
        with torch.no_grad():
            for parameter in model.parameters():  # biases and norms too, so that wiring shows
                parameter.add_(torch.randn_like(parameter) * 0.1)
        return model.eval()

    return make
