# SPDX-License-Identifier: Apache-2.0
"""Rules about products in FP8: what they need of precision, rows, widths and recomputation."""

from math import gcd

from bt_megatron.config.geometry import fp8_stacks, sequence_rows, token_positions
from bt_megatron.config.schema import RunConfig

TILE = 16
"""Rows and columns of every factor of an FP8 product are a multiple of this.

cuBLASLt wants all leading dimensions of FP8 matrices aligned to 16 bytes, and the gradient of a
weight is a product over the rows (NVIDIA, cuBLAS documentation, "cublasLtMatmul", FP8 kernels).
"""


def fp8_is_of_transformer_engine(config: RunConfig, world_size: int) -> str | None:
    """FP8 products are Transformer Engine's, between weights and activations in bf16."""
    if config.kernels.fp8 == "none":
        return None
    wanted = {"train.precision=bf16": config.train.precision != "bf16"}
    wanted["kernels.layers=transformer_engine"] = config.kernels.layers == "torch"
    faults = [value for value, is_missing in wanted.items() if is_missing]
    if not faults:
        return None
    return (
        f"kernels.fp8={config.kernels.fp8} needs {' and '.join(faults)}. Use that, or "
        "kernels.fp8=none."
    )


def fp8_rows_fill_tiles(config: RunConfig, world_size: int) -> str | None:
    """The rows that a layer multiplies at a time are a multiple of 16."""
    if config.kernels.fp8 == "none":
        return None
    layout, size, (rows, _) = config.layout, config.batch.micro_batch_size, sequence_rows(config)
    cut = layout.cp * (layout.tp if layout.sequence_parallel else 1)
    faults, unit = [], 1
    for key, _ in fp8_stacks(config.model):
        local = rows // cut
        if key == "model.token_decoder":  # has rows for every position of a block, part by part
            local = rows * token_positions(config.model) // (config.memory.token_slices * cut)
        if rows % cut == 0 and local * size % TILE:
            faults.append(f"{key} has {local * size} ({local} of each sequence on a process)")
            unit = max(unit, TILE // gcd(TILE, local))  # powers of two
    if not faults:
        return None
    return (
        f"kernels.fp8={config.kernels.fp8} multiplies whole tiles of {TILE} rows, but a "
        f"micro-batch of {size} gives others: {'; '.join(faults)}. Use a multiple of {unit} as "
        "batch.micro_batch_size, or kernels.fp8=none."
    )


def fp8_widths_fill_tiles(config: RunConfig, world_size: int) -> str | None:
    """What a process holds of every weight of a layer is a multiple of 16 wide and high."""
    if config.kernels.fp8 == "none":
        return None
    tp, faults = config.layout.tp, []
    for key, stack in fp8_stacks(config.model):
        heads = stack.num_attention_heads * stack.head_dim
        widths = {
            "hidden_size": stack.hidden_size,
            "heads": heads // tp,
            "queries, keys and values": (heads + 2 * stack.query_groups * stack.head_dim) // tp,
            "ffn_hidden_size": stack.ffn_size // tp,
        }
        faults += [f"{key} {name} {width}" for name, width in widths.items() if width % TILE]
    if not faults:
        return None
    return (
        f"kernels.fp8={config.kernels.fp8} multiplies tiles of {TILE} columns, which these widths "
        f"on a process do not fill (layout.tp {tp}): {'; '.join(faults)}. Use a smaller layout.tp "
        f"or widths that are multiples of {TILE} x tp, or kernels.fp8=none."
    )


def delayed_scaling_computes_nothing_again(config: RunConfig, world_size: int) -> str | None:
    """Each pass of a layer advances the history of maxima, a repeated one too."""
    memory = config.memory
    if config.kernels.fp8 != "delayed" or (memory.recompute == "none" and memory.token_slices == 1):
        return None
    return (
        "kernels.fp8=delayed scales by a history of past passes, which layers that are computed "
        f"again (memory.recompute={memory.recompute}, memory.token_slices={memory.token_slices}) "
        "would advance once more. Use kernels.fp8=current, which has no history, or "
        "memory.recompute=none and memory.token_slices=1."
    )
