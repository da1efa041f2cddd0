# SPDX-License-Identifier: Apache-2.0
"""What a stage keeps for the backward pass, by hand."""

import pytest

from bt_megatron.config.activations import divide, stage_activations
from bt_megatron.config.stages import resolve_stages

LAYER = (3 + 4 + 8) * 64  # residual stream and norms; qkv and heads; feed-forward
CAUSAL = LAYER + 2 * 64  # queries and keys turned by rotary
BLOCKS, POSITIONS, TOKENS = 16, 16 * 5, 64  # of one sequence of 16 blocks of 4, prefix 2
EXPANSION = BLOCKS * 3 * 64
EMBEDDER = BLOCKS * (4 * 16 + 64)
BF16 = 2  # bytes per value
ONE = {"batch.micro_batch_size": 1}


def kept(config):
    stages = stage_activations(config, resolve_stages(config))
    return [(stage.held / BF16, stage.working / BF16) for stage in stages]


def test_without_saving_everything_is_held(make_run):
    whole = EMBEDDER + 2 * BLOCKS * CAUSAL + EXPANSION + 2 * POSITIONS * LAYER + TOKENS * 64

    assert kept(make_run(ONE)) == [(whole, 0)]


def test_each_stage_holds_its_own_elements(make_run):
    config = make_run(ONE | {"layout.pp": 4, "layout.pp_cut": "Eb|b|t|tL"})

    assert kept(config) == [
        (EMBEDDER + BLOCKS * CAUSAL, 0),
        (BLOCKS * CAUSAL, 0),
        (EXPANSION + POSITIONS * LAYER, 0),
        (POSITIONS * LAYER + TOKENS * 64, 0),
    ]


def test_recomputed_layers_hold_their_input_and_one_works(make_run):
    config = make_run(
        ONE | {"memory.recompute": "full", "layout.pp": 2, "layout.pp_cut": "Ebb|ttL"}
    )

    assert kept(config) == [
        (EMBEDDER + 2 * BLOCKS * 64, BLOCKS * CAUSAL),
        (EXPANSION + 2 * POSITIONS * 64 + TOKENS * 64, POSITIONS * LAYER),
    ]


def test_recomputed_encoder_layers_hold_their_input(make_run):
    embedder = {
        "kind": "roberta",
        "hidden_size": 32,
        "num_layers": 3,
        "num_attention_heads": 2,
        "ffn_hidden_size": 64,
    }
    cut = {"layout.pp": 2, "layout.pp_cut": "E|bbttL", "model.embedder": embedder}
    layer = (4 * 32 + 4 * 32 + 2 * 64) * TOKENS
    rest = TOKENS * 32 + BLOCKS * 64

    assert kept(make_run(ONE | cut))[0] == (rest + 3 * layer, 0)
    assert kept(make_run(ONE | cut | {"memory.recompute": "full"}))[0] == (
        rest + 3 * TOKENS * 32,
        layer,
    )


@pytest.mark.parametrize("slices", [2, 4, 16])
def test_token_slices_hold_what_enters_the_token_decoder(make_run, slices):
    config = make_run(ONE | {"memory.token_slices": slices})
    tokens = EXPANSION + 2 * POSITIONS * LAYER + TOKENS * 64

    assert kept(config) == [(EMBEDDER + 2 * BLOCKS * CAUSAL + BLOCKS * 64, tokens // slices)]


def test_token_slices_of_later_stages_hold_positions(make_run):
    config = make_run(ONE | {"memory.token_slices": 4, "layout.pp": 3, "layout.pp_cut": "Ebb|t|tL"})

    assert kept(config) == [
        (EMBEDDER + 2 * BLOCKS * CAUSAL, 0),
        (BLOCKS * 64, (EXPANSION + POSITIONS * LAYER) // 4),
        (POSITIONS * 64, (POSITIONS * LAYER + TOKENS * 64) // 4),
    ]


def test_both_savings_together(make_run):
    config = make_run(ONE | {"memory.token_slices": 4, "memory.recompute": "full"})
    slices = EXPANSION + 2 * POSITIONS * LAYER + TOKENS * 64  # not computed again layer by layer

    assert kept(config) == [(EMBEDDER + 2 * BLOCKS * 64 + BLOCKS * 64, slices // 4)]


@pytest.mark.parametrize(
    ("changes", "divisor"),
    [({}, 1), ({"layout.cp": 2}, 2), ({"memory.token_slices": 4}, 4), ({"layout.tp": 2}, 2)],
    ids=["plain", "cp", "slices", "tp"],
)
def test_logits_are_those_of_a_process_at_a_time(make_run, changes, divisor):
    config = make_run(ONE | changes | {"layout.pp": 2, "layout.pp_cut": "Ebb|ttL"})
    first, last = stage_activations(config, resolve_stages(config))

    assert (first.logits, last.logits) == (0, BF16 * TOKENS * 512 // divisor)


def test_vanilla_layers_can_be_recomputed(make_run):
    config = make_run(
        ONE
        | {
            "model": {
                "architecture": "vanilla",
                "vocab_size": 512,
                "decoder": {"num_layers": 3, "hidden_size": 64, "num_attention_heads": 4},
            },
            "memory.recompute": "full",
        }
    )

    assert kept(config) == [((1 + 3 + 1) * TOKENS * 64, TOKENS * CAUSAL)]


def test_division_rounds_up():
    assert (divide(6, 3), divide(7, 3)) == (2, 3)
