# SPDX-License-Identifier: Apache-2.0
"""Rules about how model and batch are cut over processes."""

import math

from bt_megatron.config.geometry import sequence_rows, stacks
from bt_megatron.config.schema import RunConfig
from bt_megatron.config.stages import require_stages
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
    return (
        f"batch.global_batch_size ({size}) is not a multiple of batch.micro_batch_size ({micro}) x "
        f"data-parallel size ({dp}) = {once}. Use batch.global_batch_size="
        f"{_near_multiples(size, once)}, or another batch.micro_batch_size."
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


def context_parallel_cuts_the_sequence(config: RunConfig, world_size: int) -> str | None:
    """Each sequence falls into 2 cp equal chunks; a process takes two of them.

    One from the front and one from the back, so that causal attention is the same
    work for all.
    """
    cp, (rows, name) = config.layout.cp, sequence_rows(config)
    if cp == 1 or rows % (2 * cp) == 0:
        return None
    return (
        f"layout.cp ({cp}) cuts the {rows} {name} of a sequence into 2 x {cp} = {2 * cp} chunks, "
        f"which does not divide. Use data.seq_length={_near_lengths(config)}, or another layout.cp."
    )


def sequence_parallel_divides_the_sequence(config: RunConfig, world_size: int) -> str | None:
    """[n, b, h] (vanilla: [s, b, h]) of a process is cut along its first axis.

    The token decoder's [q*n, b, h] is then cut evenly too, for any q.
    """
    tp, cp, (rows, name) = config.layout.tp, config.layout.cp, sequence_rows(config)
    if not config.layout.sequence_parallel or rows % cp or rows // cp % tp == 0:
        return None
    parts = f"layout.tp ({tp})" if cp == 1 else f"layout.cp ({cp}) x layout.tp ({tp}) = {cp * tp}"
    return (
        f"layout.sequence_parallel cuts the {rows} {name} of a sequence over {parts}, "
        f"which does not divide. Use data.seq_length={_near_lengths(config)}."
    )


def _near_lengths(config: RunConfig) -> str:
    """Return the nearest data.seq_length that cp and sequence parallelism can cut."""
    layout = config.layout
    chunks = 2 * layout.cp if layout.cp > 1 else 1
    parts = layout.cp * layout.tp if layout.sequence_parallel else 1
    row = config.model.block_length if config.model.is_block else 1
    return _near_multiples(config.data.seq_length, math.lcm(chunks, parts) * row)


def virtual_stages_have_a_pipeline(config: RunConfig, world_size: int) -> str | None:
    """Virtual stages take turns on the processes of a pipeline."""
    if config.layout.vpp == 1 or config.layout.pp > 1:
        return None
    return (
        f"layout.vpp ({config.layout.vpp}) is more than 1 but layout.pp is {config.layout.pp}. "
        "Use layout.vpp=1 or layout.pp=2 or more."
    )


def virtual_stages_take_whole_groups(config: RunConfig, world_size: int) -> str | None:
    """The interleaved schedule runs micro-batches in groups of pp, all of them whole.

    Megatron-Core refuses fewer micro-batches than a group has, and a last group of
    fewer than pp; its group size (microbatch_group_size_per_vp_stage) is left at pp.
    """
    layout, batch = config.layout, config.batch
    once = batch.micro_batch_size * max(1, world_size // layout.replica_size)
    micro_batches, rest = divmod(batch.global_batch_size, once)
    if layout.vpp == 1 or layout.pp == 1 or rest or micro_batches % layout.pp == 0:
        return None
    return (
        f"layout.vpp ({layout.vpp}) runs micro-batches in groups of layout.pp ({layout.pp}), which "
        f"does not divide the {micro_batches} micro-batches of a replica. Use layout.vpp=1, or "
        f"batch.global_batch_size={_near_multiples(batch.global_batch_size, once * layout.pp)}."
    )


def overlapped_gather_has_its_parts(config: RunConfig, world_size: int) -> str | None:
    """Weights are gathered bucket by bucket only where they are sharded and reduced so."""
    layout = config.layout
    missing = [
        f"layout.{name}=true"
        for name in ("distributed_optimizer", "overlap_grad_reduce")
        if not getattr(layout, name)
    ]
    if not layout.overlap_param_gather or not missing:
        return None
    return (
        f"layout.overlap_param_gather is true but needs {' and '.join(missing)}. Set that, or use "
        "layout.overlap_param_gather=false."
    )


def stages_fit_the_model(config: RunConfig, world_size: int) -> str | None:
    """layout.pp_cut must be well formed and hold every layer once."""
    try:
        require_stages(config)
    except LayoutError as error:
        return f"layout.{error}" if str(error).startswith("pp_cut") else str(error)
    return None


def _near_multiples(value: int, unit: int) -> str:
    """Name the multiples of a unit around a value, such as "56 or 64", leaving out 0."""
    down = value - value % unit
    return f"{down} or {down + unit}" if down else f"{unit}"
