# SPDX-License-Identifier: Apache-2.0
"""Every rule can be broken, says both numbers and what to do, and breaks alone."""

import pytest

from bt_megatron.config.load import from_mapping
from bt_megatron.config.rules import RELATIONS, RULES, STRUCTURE, check
from bt_megatron.config.schema import RunConfig
from bt_megatron.errors import ConfigError
from tests.broken_layouts import BROKEN_LAYOUTS, DECODER, T5, VANILLA

ROBERTA = {
    "model.embedder.kind": "roberta",
    "model.embedder.hidden_size": 32,
    "model.embedder.num_layers": 1,
    "model.embedder.num_attention_heads": 2,
    "model.embedder.ffn_hidden_size": 64,
}
ONE = {"batch.micro_batch_size": 1}
PILE = {"pile": {"path": "data/pile", "weight": 1.0}}
CLS = {**ROBERTA, "model.embedder.kind": "roberta_cls", "model.embedder.num_cls_tokens": 3}


@pytest.mark.parametrize(
    ("changes", "world_size"),
    [
        ({}, 1),
        ({}, 8),
        ({"model.block_length": 1, "model.embedder.hidden_size": 64}, 1),
        ({"model.block_length": 32, "model.embedder.hidden_size": 2}, 1),
        ({"model.embedder.hidden_size": 10, "model.embedder.projection": True}, 1),
        (VANILLA, 2),
        (ROBERTA, 1),
        (CLS, 1),
        (CLS | T5, 1),
        ({**T5, "layout.pp": 2}, 2),
        ({"layout.tp": 2, "layout.sequence_parallel": True, "layout.pp": 2}, 8),
        ({"layout.pp": 2, "layout.pp_cut": "Ebbt|tL"}, 2),
        ({"layout.cp": 2}, 4),
        ({"layout.cp": 4, "layout.tp": 4, "layout.sequence_parallel": True}, 16),
        ({**VANILLA, "layout.cp": 4}, 4),
        ({"layout.overlap_param_gather": True, "layout.overlap_grad_reduce": True}, 2),
        ({"memory.token_slices": 8, "layout.cp": 2, "memory.recompute": "full"}, 2),
        ({**VANILLA, "memory.recompute": "full"}, 1),
        ({**T5, "layout.pp": 2, "layout.vpp": 2}, 4),
        ({**T5, "memory.recompute": "full", "memory.token_slices": 2}, 1),
        ({"layout.pp": 2, "layout.vpp": 2}, 2),
        ({"layout.pp": 2, "layout.vpp": 2, "layout.pp_cut": "E|b|bt|tL"}, 2),
        ({"model.token_decoder.num_query_groups": 2, "layout.tp": 2}, 2),
        ({"model.token_decoder.strategy": "summation"}, 1),
        ({"train.precision": "bf16"}, 1),
        ({"kernels.cuda_graphs": True, "layout.tp": 2}, 4),
        ({"kernels.cuda_graphs": True, "memory.recompute": "selective"}, 1),
        ({**ROBERTA, "kernels.cuda_graphs": True, "model.embedder.dropout": 0.0}, 1),
        ({"kernels.fp8": "current", "memory.recompute": "full", "memory.token_slices": 2}, 1),
        ({"kernels.fp8": "block", "memory.recompute": "selective", **VANILLA}, 1),
        ({**T5, "kernels.fp8": "delayed", "model.token_decoder.ffn_hidden_size": 100}, 1),
        ({**T5, "memory.recompute": "selective"}, 1),
        ({"optimizer.warmup": "log"}, 1),
        ({"checkpoint.keep_every_steps": 3000}, 1),
        ({"data.path": None, "data.mixture": PILE}, 1),
    ],
)
def test_sound_configurations_pass(make_run, changes, world_size):
    check(make_run(changes), world_size=world_size)


BROKEN = [
    ("sections_fit_the_architecture", {"model.decoder": DECODER}, 1, "model.decoder must be null"),
    ("sections_fit_the_architecture", {"model.embedder": None}, 1, "model.embedder is missing"),
    (
        "sections_fit_the_architecture",
        {"model.architecture": "vanilla"},
        1,
        "model.embedder must be null; .*model.decoder is missing",
    ),
    (
        "layers_with_a_relative_bias_are_not_recomputed",
        {**T5, "memory.recompute": "full"},
        1,
        "share one relative bias. Use memory.token_slices=2",
    ),
    (
        "graphs_are_without_pipelines",
        {"kernels.cuda_graphs": True, "layout.pp": 2},
        2,
        "layout.pp is 2.*Use kernels.cuda_graphs=false",
    ),
    (
        "graphs_are_without_overlapped_gather",
        {
            "kernels.cuda_graphs": True,
            "layout.overlap_grad_reduce": True,
            "layout.overlap_param_gather": True,
        },
        2,
        "Use layout.overlap_param_gather=false",
    ),
    (
        "graphs_are_without_dropout",
        {**ROBERTA, "kernels.cuda_graphs": True},
        1,
        r"model.embedder.dropout \(0.1\) is more than 0",
    ),
    (
        "graphs_are_without_recomputation",
        {"kernels.cuda_graphs": True, "memory.recompute": "full"},
        1,
        "memory.recompute=full.*Use kernels.cuda_graphs=false",
    ),
    (
        "graphs_are_without_recomputation",
        {"kernels.cuda_graphs": True, "memory.token_slices": 2},
        1,
        "memory.token_slices=2, and",
    ),
    ("sizes_are_positive", {"kernels.head_chunk_tokens": 0}, 1, r"head_chunk_tokens \(0\)"),
    ("data_come_from_one_place", {"data.path": None}, 1, "data.path is not set"),
    (
        "data_come_from_one_place",
        {"data.mixture": PILE},
        1,
        r"data/small\) and data.mixture \(pile",
    ),
    (
        "data_come_from_one_place",
        {"data.path": None, "data.mixture": PILE, "data.drop": "d.npz"},
        1,
        "list of one data folder",
    ),
    (
        "mixture_weights_are_positive",
        {"data.path": None, "data.mixture": {"pile": {**PILE["pile"], "weight": 0}}},
        1,
        r"data.mixture.pile.weight \(0.0\) must be greater than 0",
    ),
    (
        "mixture_weights_are_positive",
        {"data.path": None, "data.mixture": {"pile": {**PILE["pile"], "max_epochs": 0}}},
        1,
        r"data.mixture.pile.max_epochs \(0.0\) must be greater than 0",
    ),
    (
        "rows_are_not_padded",
        {"data.packing": "rows", "data.random_left_padding": False},
        1,
        "packed already. Use data.pad_to_block_boundary=false",
    ),
    ("sizes_are_positive", {"model.vocab_size": 0}, 1, r"model.vocab_size \(0\) must be"),
    ("sizes_are_positive", {"model.block_length": 33}, 1, r"\(33\) must be from 1 to 32"),
    ("sizes_are_positive", {"model.block_length": 0}, 1, r"block_length \(0\)"),
    ("sizes_are_positive", {"layout.tp": 0}, 1, r"layout.tp \(0\)"),
    ("sizes_are_positive", {"layout.pp": -1}, 1, r"layout.pp \(-1\)"),
    ("sizes_are_positive", {"batch.micro_batch_size": 0}, 1, "micro_batch_size"),
    ("sizes_are_positive", {"data.seq_length": 0}, 1, "data.seq_length"),
    ("sizes_are_positive", {"model.token_decoder.num_query_groups": 0}, 1, "num_query_groups"),
    ("sizes_are_positive", {"model.block_decoder.ffn_hidden_size": 0}, 1, "ffn_hidden_size"),
    ("sizes_are_positive", {"model.block_decoder.num_layers": 0}, 1, "num_layers"),
    ("sizes_are_positive", {"model.token_decoder.prefix_length": 0}, 1, "prefix_length"),
    ("sizes_are_positive", {}, 0, r"number of processes \(0\)"),
    ("numbers_are_in_range", {"optimizer.lr": 0.0}, 1, r"optimizer.lr \(0.0\) must be greater"),
    ("numbers_are_in_range", {"optimizer.weight_decay": -0.1}, 1, r"\(-0.1\) must be at least 0"),
    ("numbers_are_in_range", {"optimizer.min_lr_ratio": 1.5}, 1, "must be from 0 to 1"),
    ("numbers_are_in_range", {"optimizer.adam_beta2": 1.0}, 1, "less than 1"),
    ("numbers_are_in_range", {"data.validation_fraction": 1.0}, 1, "less than 1"),
    ("numbers_are_in_range", {"checkpoint.keep_last": 0}, 1, "keep_last"),
    ("numbers_are_in_range", {"log.interval_steps": 0}, 1, "log.interval_steps"),
    ("numbers_are_in_range", {"faults.dead_rank_seconds": 4}, 1, "must be at least 5"),
    ("numbers_are_in_range", {"evaluation.max_sequences": 0}, 1, "max_sequences"),
    ("numbers_are_in_range", {"model.token_decoder.dropout": 1.0}, 1, "dropout"),
    ("numbers_are_in_range", {"data.seed": -1}, 1, "data.seed"),
    ("name_is_a_folder_name", {"name": "a/b c"}, 1, "Use name=a-b-c"),
    ("name_is_a_folder_name", {"name": ".."}, 1, "Use name=run"),
    ("name_is_a_folder_name", {"name": ""}, 1, "Use name=run"),
    (
        "warmup_ends_before_the_decay",
        {"optimizer.warmup_steps": 100},
        1,
        r"\(100\) must be less than train.steps \(100\)",
    ),
    (
        "warmup_ends_before_the_decay",
        {"optimizer.decay_steps": 10},
        1,
        r"\(10\) must be less than optimizer.decay_steps \(10\)",
    ),
    (
        "log_warmup_has_two_steps",
        {"optimizer.warmup": "log", "optimizer.warmup_steps": 1},
        1,
        r"\(1\) must be at least 2",
    ),
    (
        "kept_checkpoints_are_written",
        {"checkpoint.keep_every_steps": 1500},
        1,
        "Use checkpoint.keep_every_steps=2000",
    ),
    (
        "embedder_fields_fit_its_kind",
        {"model.embedder.num_layers": 2},
        1,
        r"num_layers \(2\) has no meaning here",
    ),
    ("embedder_fields_fit_its_kind", {"model.embedder.num_cls_tokens": 3}, 1, "num_cls_tokens"),
    (
        "embedder_fields_fit_its_kind",
        {**ROBERTA, "model.embedder.ffn_hidden_size": 0},
        1,
        r"ffn_hidden_size \(0\) must be at least 1",
    ),
    (
        "embedder_fields_fit_its_kind",
        {**ROBERTA, "model.embedder.num_cls_tokens": 1},
        1,
        r"num_cls_tokens \(1\) is for roberta_cls",
    ),
    (
        "embedder_fields_fit_its_kind",
        {**CLS, "model.embedder.num_cls_tokens": 0},
        1,
        r"num_cls_tokens \(0\) must be at least 1",
    ),
    (
        "embedder_fields_fit_its_kind",
        {**ROBERTA, "model.embedder.projection": True},
        1,
        "projection is for lookup",
    ),
    (
        "block_vector_fills_the_block_decoder",
        {"model.embedder.hidden_size": 15},
        1,
        r"\(4\) x .*\(15\) = 60 must equal .*\(64\). Use model.embedder.hidden_size=16 or",
    ),
    (
        "block_vector_fills_the_block_decoder",
        {"model.block_length": 3, "data.seq_length": 63},
        1,
        r"= 48 must equal .*\(64\). Use model.embedder.projection=true",
    ),
    (
        "heads_divide_the_width",
        {"model.block_decoder.num_attention_heads": 5, "model.block_decoder.rotary_fraction": 0.5},
        1,
        r"\(5\) does not divide model.block_decoder.hidden_size \(64\)",
    ),
    (
        "heads_divide_the_width",
        {**ROBERTA, "model.embedder.num_attention_heads": 5},
        1,
        r"model.embedder.num_attention_heads \(5\)",
    ),
    (
        "query_groups_divide_the_heads",
        {"model.token_decoder.num_query_groups": 3},
        1,
        r"num_query_groups \(3\) does not divide .*num_attention_heads \(4\)",
    ),
    (
        "rotary_cuts_heads_into_pairs",
        {"model.block_decoder.rotary_fraction": 0.2},
        1,
        r"\(0.2\) x head width \(16\) rotates 3 dimensions",
    ),
    (
        "rotary_cuts_heads_into_pairs",
        {"model.token_decoder.rotary_fraction": 0.0},
        1,
        "rotates 0 dimensions",
    ),
    (
        "positions_fit_the_table",
        {**CLS, "model.embedder.max_positions": 8},
        1,
        r"\(8\) is less than the 9 that a block needs",
    ),
    (
        "cross_attention_is_a_t5_decoder",
        {"model.token_decoder.strategy": "cross_attention"},
        1,
        "residual=sequential, normalization=rmsnorm, activation=relu, bias=false",
    ),
    (
        "vanilla_has_no_block_padding",
        {**VANILLA, "data.pad_to_block_boundary": True},
        1,
        "Use data.pad_to_block_boundary=false",
    ),
    ("sequence_is_whole_blocks", {"data.seq_length": 66}, 1, r"\(66\).*\(4\); 2 tokens.*64 or 68"),
    ("sequence_has_something_to_predict", {"data.seq_length": 4}, 1, r"\(4\) .*Use 8 or more"),
    (
        "fp8_is_of_transformer_engine",
        {"kernels.fp8": "current", "train.precision": "fp32", "kernels.layers": "torch"},
        1,
        "needs train.precision=bf16 and kernels.layers=transformer_engine. Use that",
    ),
    (
        "fp8_rows_fill_tiles",
        {"kernels.fp8": "current", "batch.micro_batch_size": 1, "data.seq_length": 56},
        1,
        r"block_decoder has 14 \(14 of each .*token_decoder has 70 .* multiple of 8 as batch.micro",
    ),
    (
        "fp8_rows_fill_tiles",
        {"kernels.fp8": "block", "layout.tp": 2, "layout.sequence_parallel": True, **ONE},
        2,
        r"block_decoder has 8 .*; model.token_decoder has 40 .* multiple of 2 as batch.micro",
    ),
    (
        "fp8_widths_fill_tiles",
        {"kernels.fp8": "current", "model.token_decoder.ffn_hidden_size": 100},
        1,
        r"\(layout.tp 1\): model.token_decoder ffn_hidden_size 100. .*multiples of 16 x tp",
    ),
    (
        "delayed_scaling_computes_nothing_again",
        {"kernels.fp8": "delayed", "memory.recompute": "full"},
        1,
        "Use kernels.fp8=current",
    ),
    (
        "delayed_scaling_computes_nothing_again",
        {"kernels.fp8": "delayed", "memory.token_slices": 2},
        1,
        "memory.token_slices=2",
    ),
    *BROKEN_LAYOUTS,
]


@pytest.mark.parametrize(
    ("rule", "changes", "world_size", "message"),
    BROKEN,
    ids=[f"{row[0]}-{number}" for number, row in enumerate(BROKEN)],
)
def test_a_broken_rule_is_named_with_its_remedy(make_run, rule, changes, world_size, message):
    config = make_run(changes)
    (function,) = (each for each in RULES if each.__name__ == rule)

    with pytest.raises(ConfigError, match=message):
        check(config, world_size=world_size)
    assert function(config, world_size)


def test_every_rule_is_broken_by_some_case():
    assert {row[0] for row in BROKEN} == {rule.__name__ for rule in RULES}


def test_a_broken_rule_breaks_alone(make_run):
    """Single faults of the table above do not drag other rules along, with known exceptions."""
    together = {
        "heads_divide_the_width": {"rotary_cuts_heads_into_pairs"},
        "layout_fills_the_world": set(),
        "tensor_parallel_divides_the_layers": set(),
        "batch_divides_over_the_replicas": set(),
    }
    for name, changes, world_size, _ in BROKEN:
        config = make_run(changes)
        rules = STRUCTURE if name in {rule.__name__ for rule in STRUCTURE} else RULES
        broken = {rule.__name__ for rule in rules if rule(config, world_size)}
        assert broken - together.get(name, set()) == {name}, changes


def test_all_broken_rules_are_reported_together(make_run):
    config = make_run(
        {"data.seq_length": 66, "checkpoint.keep_last": 0, "layout.tp": 3, "optimizer.lr": 0.0}
    )

    with pytest.raises(ConfigError) as caught:
        check(config, world_size=8)

    message = str(caught.value)
    assert message.count("\n  - ") == 4
    for part in ("keep_last", "optimizer.lr", "seq_length (66)", "layout.tp (3) does not", "= 3 "):
        assert part in message


def test_relations_wait_for_sizes_but_values_do_not(make_run):
    config = make_run({"layout.tp": 0, "checkpoint.keep_last": 0})

    with pytest.raises(ConfigError) as caught:
        check(config, world_size=8)

    assert "layout.tp (0)" in str(caught.value)
    assert "keep_last" in str(caught.value)
    assert "are checked after these" in str(caught.value)


def test_a_broken_layout_comes_with_layouts_that_work(make_run):
    with pytest.raises(ConfigError) as caught:
        check(make_run({"layout.tp": 3}), world_size=8)

    assert str(caught.value).splitlines()[-4:] == [
        "nearest layouts that work with 8 processes:",
        "  --set layout.tp=4  (dp 2, 4 micro-batches, bubble 0%)",
        "  --set layout.tp=2  (dp 4, 2 micro-batches, bubble 0%)",
        "  --set layout.tp=1  (dp 8, 1 micro-batch, bubble 0%)",
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"optimizer.lr": 0.0}, False),
        ({"layout.tp": 0}, False),
        ({"layout.tp": 3, "data.seq_length": 66}, False),
        ({"layout.tp": 3, "optimizer.lr": 0.0}, True),
    ],
    ids=["no layout at fault", "sizes first", "the model first", "any value besides"],
)
def test_layouts_are_suggested_where_they_can_be_judged(make_run, changes, expected):
    with pytest.raises(ConfigError) as caught:
        check(make_run(changes), world_size=8)

    message = str(caught.value)
    assert ("nearest layouts that work" in message) == expected
    assert ("suggested once model and sequence fit" in message) == ("data.seq_length" in changes)


def test_every_relation_is_a_rule():
    assert set(RELATIONS) | set(STRUCTURE) < set(RULES)


def test_the_smallest_configuration_of_each_kind_is_sound():
    smallest = {
        "name": "a",
        "model": {
            "vocab_size": 1,
            "block_length": 1,
            "embedder": {"hidden_size": 8},
            "block_decoder": {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 1},
            "token_decoder": {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 1},
        },
        "data": {"path": "d", "seq_length": 2},
        "batch": {"global_batch_size": 1},
        "optimizer": {"warmup_steps": 0},
        "train": {"steps": 1},
    }
    check(from_mapping(RunConfig, smallest, "smallest"), world_size=1)
