# SPDX-License-Identifier: Apache-2.0
"""FLOPs: pinned integers, the model itself counted, and the reference's own budgets."""

from pathlib import Path

import pytest

from bt_megatron.config.flops import FORMULA, element_flops, forward_flops
from bt_megatron.config.geometry import layer_letters
from bt_megatron.config.load import load_model
from bt_megatron.config.params import count_parameters
from bt_megatron.config.schema import (
    DecoderConfig,
    EmbedderConfig,
    LayoutConfig,
    ModelConfig,
    TokenDecoderConfig,
)
from bt_megatron.parallel.layout import parse_stages

MODELS = Path(__file__).parents[3] / "configs/model"
STACK = {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4}
ROBERTA = {"num_layers": 2, "num_attention_heads": 2, "ffn_hidden_size": 128}


def block_model(embedder=None, **token):
    return ModelConfig(
        vocab_size=512,
        embedder=embedder or EmbedderConfig(hidden_size=16),
        block_decoder=DecoderConfig(**STACK),
        token_decoder=TokenDecoderConfig(**(STACK | token)),
    )


TINY = {
    "prefix": block_model(),
    "summation": block_model(strategy="summation"),
    "projection-groups-swiglu": block_model(
        EmbedderConfig(hidden_size=20, projection=True),
        hidden_size=32,
        num_query_groups=2,
        activation="swiglu",
        normalization="rmsnorm",
        residual="sequential",
        bias=False,
        rotary_fraction=0.5,
    ),
    "roberta": block_model(EmbedderConfig(kind="roberta", hidden_size=32, **ROBERTA)),
    "cls-t5": block_model(
        EmbedderConfig(kind="roberta_cls", hidden_size=32, num_cls_tokens=3, **ROBERTA),
        strategy="cross_attention",
        residual="sequential",
        normalization="rmsnorm",
        activation="relu",
        bias=False,
    ),
    "vanilla": ModelConfig(architecture="vanilla", vocab_size=512, decoder=DecoderConfig(**STACK)),
}

PINNED = {
    ("block-1.2b", "full"): 12_505_350_930_432,
    ("block-1.2b", "causal"): 12_465_261_772_800,
    ("ablation-cls-cross-attention", "full"): 1_376_399_130_624,
    ("ablation-cls-cross-attention", "causal"): 1_368_995_659_776,
    ("vanilla-410m", "full"): 5_580_773_130_240,
    ("vanilla-410m", "causal"): 4_962_599_829_504,
}


@pytest.mark.parametrize(("name", "convention"), PINNED)
def test_training_flops_of_a_sequence_are_pinned(name, convention):
    model = load_model(MODELS / f"{name}.yaml")

    flops = forward_flops(model, seq_length=2048, convention=convention)

    assert flops.training_per_sequence == PINNED[name, convention]
    assert flops.training_per_token == PINNED[name, convention] / 2048
    assert FORMULA == "bt-matmul-v1", "a changed formula needs a new name and new pins"


def test_components_of_the_main_model_by_hand():
    """block-1.2b: 12 + 12 layers of width 2048, 512 blocks, 5 positions per block."""
    flops = forward_flops(load_model(MODELS / "block-1.2b.yaml"), seq_length=2048)
    weights = 12 * 2048**2

    assert flops.embedder == 0
    assert flops.block_decoder == 12 * (2 * 512 * weights + 4 * 2048 * 512**2)
    assert flops.expansion == 2 * 512 * 2048 * 4096
    assert flops.token_decoder == 12 * (2 * 2560 * weights + 4 * 2048 * 512 * 25)
    assert flops.head == 2 * 2048 * 2048 * 50304
    assert flops.decoder == 0


def count_model(name):
    """Return the matrix products of a forward pass, as torch counts them, and the parameters."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from bt_megatron.model.build import build_stage
    from bt_megatron.model.transformer_config import Computation
    from bt_megatron.parallel.groups import build_groups

    build_groups(LayoutConfig(), seed=1)
    model = TINY[name]
    stage = build_stage(model, LayoutConfig(), parse_stages(layer_letters(model)), Computation())
    tokens = torch.randint(2, 512, (1, 64), generator=torch.Generator().manual_seed(1))
    real = torch.ones_like(tokens, dtype=torch.bool)

    # The counter does not know the CPU's fused attention; the plain one is made of products.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        stage(tokens, real, tokens, real)
    return counter.get_total_flops(), sum(p.numel() for p in stage.parameters())


@pytest.mark.parametrize("name", TINY)
def test_formula_and_counts_equal_the_model_itself(name):
    """torch counts the matrix products of a forward pass; attention is unmasked there."""
    from tests.ranks import run_ranks

    ((flops, parameters),) = run_ranks(count_model, 1, name)
    assert flops == forward_flops(TINY[name], seq_length=64).total
    assert parameters == count_parameters(TINY[name]).total


@pytest.mark.parametrize("name", TINY)
def test_causal_attention_is_cheaper_and_the_rest_is_equal(name):
    full = forward_flops(TINY[name], seq_length=64)
    causal = forward_flops(TINY[name], seq_length=64, convention="causal")

    assert causal.total < full.total
    assert (causal.embedder, causal.expansion, causal.head) == (
        full.embedder,
        full.expansion,
        full.head,
    )


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.yaml")), ids=lambda path: path.stem)
def test_elements_add_up_to_the_model(path):
    model = load_model(path)
    elements = element_flops(model, seq_length=2048)

    assert len(elements) == len(layer_letters(model))
    assert sum(elements) == forward_flops(model, seq_length=2048).total


def test_flop_budgets_of_the_reference_are_equal_under_our_formula():
    """The reference stops its four *_flop_v70 runs at the FLOPs of vanilla 70M's whole run.

    Its formula is not published, so ours need not give vanilla's total; but the four
    runs must cost the same under a formula that weighs the parts of the model rightly.
    """
    runs = {
        "block-170m": 266_317 * 256,
        "block-420m": 98_120 * 256,
        "block-1.0b": 19_300 * 512,
        "block-1.2b": 13_530 * 512,
    }
    totals = [
        sequences
        * forward_flops(load_model(MODELS / f"{name}.yaml"), seq_length=2048).training_per_sequence
        for name, sequences in runs.items()
    ]

    assert max(totals) / min(totals) < 1.005
