# SPDX-License-Identifier: Apache-2.0
"""All rules that a configuration must keep, and the check that reports every broken one.

A rule is a function (config, world_size) -> message or None, named after what must
hold. Where the rules are written: `value_rules.py` (one key at a time),
`model_rules.py`, `layout_rules.py`.
"""

from collections.abc import Callable

from bt_megatron.config import layout_rules, model_rules, value_rules
from bt_megatron.config.schema import RunConfig
from bt_megatron.errors import ConfigError

Rule = Callable[[RunConfig, int], str | None]

STRUCTURE: tuple[Rule, ...] = (
    model_rules.sections_fit_the_architecture,
    value_rules.sizes_are_positive,
)
"""What the relations below divide by and look into; if one is broken they are not tried."""

RELATIONS: tuple[Rule, ...] = (
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
    layout_rules.layout_fills_the_world,
    layout_rules.batch_divides_over_the_replicas,
    layout_rules.tensor_parallel_divides_the_layers,
    layout_rules.sequence_parallel_has_tensor_parallel,
    layout_rules.sequence_parallel_divides_the_sequence,
    layout_rules.stages_fit_the_model,
)

RULES: tuple[Rule, ...] = (
    *STRUCTURE,
    value_rules.numbers_are_in_range,
    value_rules.name_is_a_folder_name,
    value_rules.warmup_ends_before_the_decay,
    value_rules.log_warmup_has_two_steps,
    value_rules.kept_checkpoints_are_written,
    *RELATIONS,
)
"""Every rule, in the order of the report."""


def check(config: RunConfig, *, world_size: int) -> None:
    """Raise one error that lists every broken rule, not only the first.

    Args:
        config: The run.
        world_size: Number of processes.

    Raises:
        ConfigError: if any rule is broken.
    """
    sound = not any(rule(config, world_size) for rule in STRUCTURE)
    rules = [rule for rule in RULES if sound or rule not in RELATIONS]
    broken = [message for rule in rules if (message := rule(config, world_size))]
    if broken:
        listed = "\n".join(f"  - {message}" for message in broken)
        more = "" if sound else "\n(rules about how sizes fit together are checked after these)"
        raise ConfigError(f"the configuration breaks these rules:\n{listed}{more}")
