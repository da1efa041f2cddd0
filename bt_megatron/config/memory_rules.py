# SPDX-License-Identifier: Apache-2.0
"""Rules about what is computed again instead of being kept."""

from bt_megatron.config.geometry import is_t5, sequence_rows
from bt_megatron.config.schema import RunConfig


def layers_with_a_relative_bias_are_not_recomputed(
    config: RunConfig, world_size: int
) -> str | None:
    """T5's layers share one bias, whose gradient cannot pass through the layers' own passes."""
    if config.memory.recompute != "full" or config.memory.token_slices > 1:
        return None
    if not is_t5(config.model):
        return None
    return (
        "memory.recompute=full computes each layer again by itself, but the token layers of "
        "cross_attention (T5) share one relative bias. Use memory.token_slices=2 or more, which "
        "computes them again together, or memory.recompute=selective."
    )


def token_slices_are_of_blocks(config: RunConfig, world_size: int) -> str | None:
    """Only a block model's token decoder can be run part by part: blocks are independent."""
    slices = config.memory.token_slices
    if slices == 1 or config.model.is_block:
        return None
    return (
        f"memory.token_slices ({slices}) cuts the blocks of a token decoder, but "
        f"model.architecture is {config.model.architecture}. Use memory.token_slices=1."
    )


def token_slices_divide_the_blocks(config: RunConfig, world_size: int) -> str | None:
    """The slices of a process's blocks are equal."""
    slices, cp, (rows, name) = config.memory.token_slices, config.layout.cp, sequence_rows(config)
    if not config.model.is_block or rows % cp or rows // cp % slices == 0:
        return None
    local = rows // cp
    down = next(size for size in range(slices, 0, -1) if local % size == 0)
    up = next((size for size in range(slices, local) if local % size == 0), local)
    return (
        f"memory.token_slices ({slices}) does not divide the {local} {name} of a sequence on a "
        f"process (layout.cp {cp}). Use memory.token_slices={down}"
        f"{f' or {up}' if up > slices else ''}."
    )


def token_slices_are_without_sequence_parallel(config: RunConfig, world_size: int) -> str | None:
    """Sequence parallelism has cut the rows already, across the blocks."""
    slices = config.memory.token_slices
    if slices == 1 or not config.layout.sequence_parallel or not config.model.is_block:
        return None
    return (
        f"memory.token_slices ({slices}) is more than 1 but layout.sequence_parallel is true. "
        "Use memory.token_slices=1 or layout.sequence_parallel=false."
    )
