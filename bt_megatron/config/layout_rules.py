# SPDX-License-Identifier: Apache-2.0
"""Rules about how model and batch are cut over processes."""

from bt_megatron.config.geometry import stacks
from bt_megatron.config.schema import RunConfig
from bt_megatron.config.stages import resolve_stages
from bt_megatron.errors import LayoutError


def layout_fills_the_world(config: RunConfig, world_size: int) -> str | None:
    """The processes must form whole replicas."""
    tp, cp, pp = config.layout.tp, config.layout.cp, config.layout.pp
    if world_size % config.layout.replica_size == 0:
        return None
    return (
        f"layout.tp ({tp}) x layout.cp ({cp}) x layout.pp ({pp}) = {config.layout.replica_size} "
        f"processes per replica does not divide the world size ({world_size}). Use a product that "
        "divides it, or another number of processes."
    )


def batch_divides_over_the_replicas(config: RunConfig, world_size: int) -> str | None:
    """Every replica must take the same whole number of micro-batches."""
    dp = max(1, world_size // config.layout.replica_size)
    size, micro = config.batch.global_batch_size, config.batch.micro_batch_size
    once = micro * dp
    if size % once == 0:
        return None
    down = size - size % once
    return (
        f"batch.global_batch_size ({size}) is not a multiple of batch.micro_batch_size ({micro}) x "
        f"data-parallel size ({dp}) = {once}. Use batch.global_batch_size="
        f"{f'{down} or ' if down else ''}{down + once}, or another batch.micro_batch_size."
    )


def tensor_parallel_divides_the_layers(config: RunConfig, world_size: int) -> str | None:
    """Heads, key-value heads and feed-forward columns are dealt out evenly."""
    tp = config.layout.tp
    faults = [
        f"{key}.{name} ({size})"
        for key, stack in stacks(config.model)
        for name, size in (
            ("num_attention_heads", stack.num_attention_heads),
            ("num_query_groups", stack.query_groups),
            ("ffn_hidden_size", stack.ffn_size),
        )
        if size % tp and not (name == "num_query_groups" and stack.num_query_groups is None)
    ]
    if not faults:
        return None
    return f"layout.tp ({tp}) does not divide {', '.join(faults)}. Use a smaller layout.tp."


def sequence_parallel_has_tensor_parallel(config: RunConfig, world_size: int) -> str | None:
    """Sequence parallelism cuts activations over the tensor-parallel group."""
    if not config.layout.sequence_parallel or config.layout.tp > 1:
        return None
    return (
        f"layout.sequence_parallel is true but layout.tp is {config.layout.tp}. "
        "Use layout.sequence_parallel=false or layout.tp=2 or more."
    )


def sequence_parallel_divides_the_sequence(config: RunConfig, world_size: int) -> str | None:
    """[n, b, h] (vanilla: [s, b, h]) is cut along its first axis.

    The token decoder's [q*n, b, h] is then cut evenly too, for any q.
    """
    if not config.layout.sequence_parallel:
        return None
    tp, seq = config.layout.tp, config.data.seq_length
    rows = seq // config.model.block_length if config.model.is_block else seq
    if rows % tp == 0:
        return None
    unit = tp * (config.model.block_length if config.model.is_block else 1)
    name = "blocks" if config.model.is_block else "tokens"
    down = seq - seq % unit
    return (
        f"layout.sequence_parallel cuts the {rows} {name} of a sequence over layout.tp ({tp}), "
        f"which does not divide. Use data.seq_length={f'{down} or ' if down else ''}{down + unit}."
    )


def stages_fit_the_model(config: RunConfig, world_size: int) -> str | None:
    """layout.pp_cut must be well formed and hold every layer once."""
    try:
        resolve_stages(config)
    except LayoutError as error:
        return f"layout.{error}" if str(error).startswith("pp_cut") else str(error)
    return None
