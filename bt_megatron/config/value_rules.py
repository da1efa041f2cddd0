# SPDX-License-Identifier: Apache-2.0
"""Rules about single values: ranges, names, the schedule, intervals."""

import re
from typing import Any

from bt_megatron.config.load import dotted_values
from bt_megatron.config.schema import RunConfig

MAX_BLOCK_LENGTH = 32
"""Largest block length that the project supports and tests."""

_SIZES = {
    "model.vocab_size",
    "model.block_length",
    "model.embedder.hidden_size",
    "data.seq_length",
    "batch.global_batch_size",
    "batch.micro_batch_size",
    "layout.tp",
    "layout.cp",
    "layout.pp",
    "layout.vpp",
    "memory.token_slices",
    "kernels.head_chunk_tokens",
    "model.token_decoder.prefix_length",
} | {
    f"model.{stack}.{size}"
    for stack in ("block_decoder", "token_decoder", "decoder")
    for size in (
        "num_layers",
        "hidden_size",
        "num_attention_heads",
        "num_query_groups",
        "ffn_hidden_size",
    )
}

_AT_LEAST = {
    "train.steps": 1,
    "train.seed": 0,
    "data.seed": 0,
    "data.padding_seed": 0,
    "optimizer.warmup_steps": 0,
    "optimizer.decay_steps": 1,
    "optimizer.weight_decay": 0,
    "optimizer.clip_grad": 0,
    "evaluation.interval_steps": 1,
    "evaluation.max_sequences": 1,
    "checkpoint.interval_steps": 1,
    "checkpoint.keep_last": 1,
    "checkpoint.keep_every_steps": 1,
    "faults.dead_rank_seconds": 5,
    "faults.hung_rank_seconds": 5,
    "faults.slow_phase_seconds": 5,
    "faults.max_skipped_batches": 0,
    "log.interval_steps": 1,
}

_ABOVE_ZERO = {"optimizer.lr", "optimizer.adam_eps", "model.init_std"} | {
    f"model.{stack}.{value}"
    for stack in ("block_decoder", "token_decoder", "decoder")
    for value in ("rotary_base", "norm_epsilon")
}

_BELOW_ONE = {
    "data.validation_fraction",
    "optimizer.adam_beta1",
    "optimizer.adam_beta2",
    "model.embedder.dropout",
    "model.token_decoder.dropout",
}

_UP_TO_ONE = {"optimizer.min_lr_ratio"} | {
    f"model.{stack}.rotary_fraction" for stack in ("block_decoder", "token_decoder", "decoder")
}


def sizes_are_positive(config: RunConfig, world_size: int) -> str | None:
    """Sizes and counts that others are divided by must be at least 1."""
    faults = [
        f"{key} ({value}) must be at least 1"
        for key, value in dotted_values(config).items()
        if key in _SIZES and value is not None and value < 1
    ]
    if world_size < 1:
        faults.append(f"the number of processes ({world_size}) must be at least 1")
    length = config.model.block_length
    if length > MAX_BLOCK_LENGTH:
        faults.append(
            f"model.block_length ({length}) must be from 1 to {MAX_BLOCK_LENGTH}; "
            f"use {MAX_BLOCK_LENGTH} or less"
        )
    return "; ".join(faults) + "." if faults else None


def numbers_are_in_range(config: RunConfig, world_size: int) -> str | None:
    """Rates, fractions, seeds and intervals must be where they make sense."""
    faults = [
        f"{key} ({value}) must be {wanted}"
        for key, value in dotted_values(config).items()
        if value is not None and (wanted := _range_fault(key, value))
    ]
    return "; ".join(faults) + "." if faults else None


def _range_fault(key: str, value: Any) -> str | None:
    """Return the range that a value misses, or None."""
    if key in _AT_LEAST and value < _AT_LEAST[key]:
        return f"at least {_AT_LEAST[key]}"
    if key == "faults.spike_factor" and value != 0 and value <= 1:
        return "greater than 1, or 0 for none"
    if key in _ABOVE_ZERO and value <= 0:
        return "greater than 0"
    if key in _BELOW_ONE and not 0 <= value < 1:
        return "at least 0 and less than 1"
    if key in _UP_TO_ONE and not 0 <= value <= 1:
        return "from 0 to 1"
    return None


def name_is_a_folder_name(config: RunConfig, world_size: int) -> str | None:
    """The name of a run becomes a folder."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", config.name):
        return None
    better = re.sub(r"[^A-Za-z0-9._-]+", "-", config.name).strip("-._") or "run"
    return (
        f"name ('{config.name}') must be letters, digits, '.', '_' and '-', starting with a "
        f"letter or digit, because it becomes a folder. Use name={better}."
    )


def warmup_ends_before_the_decay(config: RunConfig, world_size: int) -> str | None:
    """The cosine needs at least one step after the warm-up."""
    optimizer = config.optimizer
    key = "train.steps" if optimizer.decay_steps is None else "optimizer.decay_steps"
    end = optimizer.decay_steps or config.train.steps
    if optimizer.warmup_steps < end:
        return None
    return (
        f"optimizer.warmup_steps ({optimizer.warmup_steps}) must be less than {key} ({end}), "
        f"where the cosine ends. Use optimizer.warmup_steps={max(0, end // 20)}, for example."
    )


def log_warmup_has_two_steps(config: RunConfig, world_size: int) -> str | None:
    """A logarithmic warm-up divides by log(warmup_steps)."""
    optimizer = config.optimizer
    if optimizer.warmup != "log" or optimizer.warmup_steps >= 2:
        return None
    return (
        f"optimizer.warmup_steps ({optimizer.warmup_steps}) must be at least 2 with "
        "optimizer.warmup=log. Use optimizer.warmup=linear or more steps."
    )


def kept_checkpoints_are_written(config: RunConfig, world_size: int) -> str | None:
    """A checkpoint can be kept for ever only if it is written."""
    every, interval = config.checkpoint.keep_every_steps, config.checkpoint.interval_steps
    if every is None or every < 1 or interval < 1 or every % interval == 0:
        return None
    up = -(-every // interval) * interval
    return (
        f"checkpoint.keep_every_steps ({every}) is not a multiple of checkpoint.interval_steps "
        f"({interval}), so most of those checkpoints would never be written. "
        f"Use checkpoint.keep_every_steps={up}."
    )
