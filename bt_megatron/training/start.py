# SPDX-License-Identifier: Apache-2.0
"""Where a run starts from: its newest whole checkpoint, given weights, or random ones."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer

from bt_megatron.checkpoint.restore import Found, find_newest_whole, load_checkpoint
from bt_megatron.checkpoint.resume import compare_for_resume, require_resumable
from bt_megatron.checkpoint.state import unwrap
from bt_megatron.checkpoint.weights import read_weights
from bt_megatron.config.load import dotted_values, from_mapping
from bt_megatron.config.plan import Plan
from bt_megatron.config.schema import ModelConfig, RunConfig
from bt_megatron.errors import CheckpointError, ConversionError
from bt_megatron.model.initialize import initialize_weights
from bt_megatron.model.named_weights import load_named_weights
from bt_megatron.observe.console import Console
from bt_megatron.observe.jsonl import read_lines
from bt_megatron.training.guard import GuardState


def find_start(
    checkpoints: Path, config: RunConfig, console: Console, *, allow: Sequence[str] = ()
) -> Found:
    """Return the checkpoint to resume, after checking that the run is still the same.

    Args:
        checkpoints: of the run.
        config: of the run as it is started now.
        console: for damaged files and for what differs.
        allow: keys that may differ although they make another run (--resume-allow).

    Raises:
        ConfigError: a difference would make another run.
        CheckpointError: there are checkpoints and all are damaged.

    Comm: see `find_newest_whole`; must be called by all ranks.
    """
    found = find_newest_whole(checkpoints)
    for line in found.damage:
        console.warn(f"damaged checkpoint passed over: {line}")
    if found.folder is None and found.damage:
        raise CheckpointError(
            f"{checkpoints}: every checkpoint is damaged. Start from nothing with another name, "
            "or move the folder away to start this run again."
        )
    if found.manifest is not None:
        saved = from_mapping(RunConfig, found.manifest.config, f"{found.folder}/manifest.json")
        differences = compare_for_resume(saved, config)
        require_resumable(differences, allow=allow)
        for difference in differences:
            console.note(f"resume: {difference}")
    return found


def guard_state(found: Found) -> GuardState | None:
    """Return what the guard over batches knew at a checkpoint."""
    if found.manifest is None or not found.manifest.guard:
        return None
    saved = found.manifest.guard
    return GuardState(saved["losses"], [int(step) for step in saved["skipped"]])


def owes_evaluation(metrics: Path, config: RunConfig, *, step: int) -> bool:
    """Return whether an evaluation after `step` steps is due and was not recorded.

    Comm: a broadcast from rank 0 if one is due; must be called by all ranks.
    """
    interval, last = config.evaluation.interval_steps, config.train.steps
    if step == 0 or (step % interval and step != last):
        return False
    owes: list[bool | None] = [None]
    if dist.get_rank() == 0:
        values = (line.value or {} for line in read_lines(metrics))
        owes = [all((v.get("kind"), v.get("step")) != ("evaluation", step) for v in values)]
    dist.broadcast_object_list(owes, src=0, device=torch.device(torch.cuda.current_device()))
    return bool(owes[0])


def set_initial_weights(config: RunConfig, chunks: Sequence[DistributedDataParallel]) -> None:
    """Set the weights of a run that starts from nothing.

    Raises:
        ConversionError: checkpoint.initialize_from does not fit the model.

    Comm: none.
    """
    source = config.checkpoint.initialize_from
    if source is None:
        for chunk in chunks:
            initialize_weights(unwrap(chunk), config.model, seed=config.train.seed)
        return
    weights, model, _ = read_weights(Path(source))
    if model != config.model:
        listed = differing_fields(model, config.model)
        raise ConversionError(
            f"checkpoint.initialize_from {source}: was made for another model: {listed}. "
            f"Include the model section of {source}/model.yaml."
        )
    for chunk in chunks:
        load_named_weights(unwrap(chunk), weights)


def differing_fields(old: ModelConfig, new: ModelConfig) -> str:
    """Return what differs between two models, with both values."""
    before, after = dotted_values(old), dotted_values(new)
    keys = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    return ", ".join(f"{key} {before.get(key)} -> {after.get(key)}" for key in keys)


def resume(
    found: Found,
    config: RunConfig,
    plan: Plan,
    chunks: Sequence[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    *,
    data_fingerprint: str,
) -> int:
    """Load the checkpoint that was found.

    Returns:
        The steps it has taken; 0 if there is none.

    Raises:
        CheckpointError: it belongs to other data.

    Comm: must be called by all ranks.
    """
    if found.folder is None or found.manifest is None:
        return 0
    manifest = found.manifest
    if manifest.data_fingerprint != data_fingerprint:
        raise CheckpointError(
            f"{found.folder}: was trained on samples {manifest.data_fingerprint[:12]}, the "
            f"data are now {data_fingerprint[:12]}. Put the data back, or choose another name."
        )
    load_checkpoint(
        found.folder,
        chunks,
        optimizer,
        saved=from_mapping(RunConfig, manifest.config, "manifest.json"),
        own=config,
        same_world=manifest.world_size == plan.world_size,
    )
    return manifest.step
