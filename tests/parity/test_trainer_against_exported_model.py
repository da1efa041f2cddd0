# SPDX-License-Identifier: Apache-2.0
"""The trainer's models against the exported modeling file: two implementations, all kinds."""

import pytest
import torch
from torch import Tensor

from bt_megatron.checkpoint.hf_config import block_fields
from bt_megatron.checkpoint.names import to_official
from bt_megatron.config.geometry import layer_letters
from bt_megatron.config.schema import LayoutConfig, ModelConfig
from bt_megatron.inference.modeling_block_transformer import (
    BlockTransformerConfig,
    BlockTransformerForCausalLM,
)
from bt_megatron.model.build import build_stage, reference_logits
from bt_megatron.model.initialize import initialize_weights
from bt_megatron.model.transformer_config import Computation
from bt_megatron.parallel.groups import build_groups
from bt_megatron.parallel.layout import parse_stages
from tests.ranks import run_ranks
from tests.small_models import KINDS, small_model

LOGIT_ATOL = 1e-5
BLOCKS = 6
MODELS = {
    **{kind: small_model(**changes) for kind, changes in KINDS.items()},
    **{f"block length {k}": small_model(block_length=k) for k in (1, 2, 8, 16, 32)},
    "block length 3": small_model(
        block_length=3, block_decoder={"hidden_size": 36}, embedder={"hidden_size": 12}
    ),
    "block length 32, prefix 32": small_model(block_length=32, token_decoder={"prefix_length": 32}),
}


def both_logits(model: ModelConfig) -> tuple[Tensor, Tensor]:
    """Return the logits of all blocks but the first: the trainer's, the exported model's."""
    build_groups(LayoutConfig(), seed=0)
    stages = parse_stages(layer_letters(model))
    stage = build_stage(model, LayoutConfig(), stages, Computation())
    initialize_weights(stage, model, seed=3)
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: param.detach() + 0.2 * torch.randn(param.shape, generator=generator)
        for name, param in stage.named_parameters()
    }
    tokens = torch.randint(
        2, model.vocab_size, (2, BLOCKS * model.block_length), generator=generator
    )
    exported = BlockTransformerForCausalLM(BlockTransformerConfig(**block_fields(model)))
    missing, unexpected = exported.load_state_dict(to_official(weights, model), strict=False)
    assert not unexpected
    assert not [name for name in missing if "shared" not in name and "lm_head" not in name]
    with torch.no_grad():
        theirs = exported.eval()(tokens).logits[:, model.block_length - 1 : -1]
    return reference_logits(weights, model, tokens), theirs


@pytest.mark.parametrize("name", MODELS)
def test_two_implementations_agree(name: str) -> None:
    ((ours, theirs),) = run_ranks(both_logits, 1, MODELS[name])
    assert ours.std() > 0.1
    scale = max(1.0, ours.abs().max().item())
    torch.testing.assert_close(ours, theirs, atol=LOGIT_ATOL * scale, rtol=0)
