# SPDX-License-Identifier: Apache-2.0
"""All rules that a configuration must keep, and the check that reports every broken one.

A rule is a function (config, world_size) -> message or None, named after what must
hold. Where the rules are written: `value_rules.py` (one key at a time),
`data_rules.py`, `model_rules.py`, `layout_rules.py`, `memory_rules.py`, `fp8_rules.py`,
`graph_rules.py`.
"""

from bt_megatron.config import (
    data_rules,
    fp8_rules,
    graph_rules,
    layout_rules,
    memory_rules,
    model_rules,
    value_rules,
)
from bt_megatron.config.schema import RunConfig
from bt_megatron.config.suggest import Rule, suggestion_lines
from bt_megatron.errors import ConfigError

STRUCTURE: tuple[Rule, ...] = (
    model_rules.sections_fit_the_architecture,
    value_rules.sizes_are_positive,
)
"""What the relations below divide by and look into; if one is broken they are not tried."""

MODEL: tuple[Rule, ...] = (
    model_rules.embedder_fields_fit_its_kind,
    model_rules.block_vector_fills_the_block_decoder,
    model_rules.heads_divide_the_width,
    model_rules.query_groups_divide_the_heads,
    model_rules.rotary_cuts_heads_into_pairs,
    model_rules.positions_fit_the_table,
    model_rules.cross_attention_is_a_t5_decoder,
    model_rules.vanilla_has_no_block_padding,
    model_rules.sequence_is_whole_blocks,
    model_rules.sequence_has_something_to_predict,
    memory_rules.layers_with_a_relative_bias_are_not_recomputed,
    graph_rules.graphs_are_without_dropout,
    graph_rules.graphs_are_without_recomputation,
)
"""How the sizes of the model and of a sequence fit together."""

LAYOUT: tuple[Rule, ...] = (
    layout_rules.layout_fills_the_world,
    layout_rules.batch_divides_over_the_replicas,
    layout_rules.tensor_parallel_divides_the_layers,
    layout_rules.sequence_parallel_has_tensor_parallel,
    layout_rules.context_parallel_cuts_the_sequence,
    layout_rules.sequence_parallel_divides_the_sequence,
    layout_rules.virtual_stages_have_a_pipeline,
    layout_rules.virtual_stages_take_whole_groups,
    layout_rules.stages_fit_the_model,
    layout_rules.overlapped_gather_has_its_parts,
    memory_rules.token_slices_are_of_blocks,
    memory_rules.token_slices_divide_the_blocks,
    memory_rules.token_slices_are_without_sequence_parallel,
    graph_rules.graphs_are_without_pipelines,
    graph_rules.graphs_are_without_overlapped_gather,
)
"""How the layout fits model, sequence, batch and processes: another layout can repair it."""

FP8: tuple[Rule, ...] = (
    fp8_rules.fp8_is_of_transformer_engine,
    fp8_rules.fp8_rows_fill_tiles,
    fp8_rules.fp8_widths_fill_tiles,
    fp8_rules.delayed_scaling_computes_nothing_again,
)
"""What products in FP8 need; each says itself what to use."""

RELATIONS: tuple[Rule, ...] = (*MODEL, *LAYOUT, *FP8)
"""What is not tried if STRUCTURE is broken."""

RULES: tuple[Rule, ...] = (
    *STRUCTURE,
    value_rules.numbers_are_in_range,
    value_rules.name_is_a_folder_name,
    value_rules.warmup_ends_before_the_decay,
    value_rules.log_warmup_has_two_steps,
    value_rules.kept_checkpoints_are_written,
    data_rules.data_come_from_one_place,
    data_rules.mixture_weights_are_positive,
    data_rules.rows_are_not_padded,
    *RELATIONS,
)
"""Every rule, in the order of the report."""


def check(config: RunConfig, *, world_size: int) -> None:
    """Raise one error that lists every broken rule, and the nearest layouts that work.

    Args:
        config: The run.
        world_size: Number of processes.

    Raises:
        ConfigError: if any rule is broken.
    """
    sound = not any(rule(config, world_size) for rule in STRUCTURE)
    rules = [rule for rule in RULES if sound or rule not in RELATIONS]
    broken = {rule: message for rule in rules if (message := rule(config, world_size))}
    if not broken:
        return
    lines = ["the configuration breaks these rules:", *(f"  - {m}" for m in broken.values())]
    if not sound:
        lines.append("(rules about how sizes fit together are checked after these)")
    elif broken.keys() & set(LAYOUT):
        if broken.keys() & set(MODEL):
            lines.append("(layouts are suggested once model and sequence fit together)")
        else:
            lines += suggestion_lines(config, world_size, (*LAYOUT, *FP8))
    raise ConfigError("\n".join(lines))
