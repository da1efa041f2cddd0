# SPDX-License-Identifier: Apache-2.0
"""Finding the newest whole checkpoint of a run and loading it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.optimizer import MegatronOptimizer
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException

from bt_megatron.checkpoint.folder import complete_checkpoints
from bt_megatron.checkpoint.manifest import Manifest, find_damage, read_manifest
from bt_megatron.checkpoint.optimizer_forms import (
    copy_structure,
    in_own_form,
    read_main_weights,
)
from bt_megatron.checkpoint.state import load_state, sharded_state
from bt_megatron.config.schema import RunConfig
from bt_megatron.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Found:
    """The newest whole checkpoint, and what was passed over."""

    folder: Path | None
    manifest: Manifest | None
    damage: list[str]
    """One line for each damaged file of a newer checkpoint."""


def find_newest_whole(checkpoints: Path) -> Found:
    """Return the newest checkpoint whose files are all as the manifest says.

    The ranks share the hashing, so it takes as long as reading the files once.

    Comm: an object gather per checkpoint looked at; must be called by all ranks.
    """
    damage: list[str] = []
    for folder in _agreed_list(checkpoints):
        try:
            manifest = read_manifest(folder)
            found = _shared_check(folder, manifest)
        except CheckpointError as error:
            found = [str(error)]
        if not found:
            return Found(folder, manifest, damage)
        damage += found
    return Found(None, None, damage)


def load_checkpoint(
    folder: Path,
    chunks: Sequence[nn.Module],
    optimizer: MegatronOptimizer,
    *,
    saved: RunConfig,
    own: RunConfig,
    same_world: bool,
) -> None:
    """Load weights, optimizer state and FP8 scales, and random states if the layout is the same.

    Args:
        folder: a whole checkpoint.
        chunks: the wrapped stages of this rank.
        optimizer: its optimizer.
        saved: configuration of the checkpoint.
        own: configuration of this run.
        same_world: whether the number of processes is that of the checkpoint.

    Raises:
        CheckpointError: the tensors are not those of this model.

    Comm: reads are shared over all ranks; must be called by all.
    """
    same_layout = same_world and saved.layout == own.layout
    state = sharded_state(
        chunks,
        optimizer,
        is_loading=True,
        with_random=same_layout,
        with_scales=saved.kernels.fp8 == own.kernels.fp8,
    )
    was_sharded, is_sharded = (c.layout.distributed_optimizer for c in (saved, own))
    own_form = copy_structure(state["optimizer"])
    if was_sharded != is_sharded:
        read_main_weights(
            state["optimizer"], was_sharded=was_sharded, precision=own.train.precision
        )
    try:
        loaded = dist_checkpointing.load(state, str(folder))
    except (CheckpointException, CheckpointingException, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: does not fit the model ({_cause(error)}). Use the configuration it was "
            "made with: config.resolved.yaml of its run."
        ) from error
    if was_sharded != is_sharded:
        steps = read_manifest(folder).step
        loaded["optimizer"] = in_own_form(own_form, loaded["optimizer"], steps=steps)
    load_state(chunks, optimizer, loaded)


def _agreed_list(checkpoints: Path) -> list[Path]:
    """Return rank 0's list, so that a slow file system cannot split the ranks."""
    listed = [list(complete_checkpoints(checkpoints)) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(listed, src=0, device=_device())
    assert listed[0] is not None, "rank 0 sends a list"
    return listed[0]


def _shared_check(folder: Path, manifest: Manifest) -> list[str]:
    mine = list(manifest.files)[dist.get_rank() :: dist.get_world_size()]
    parts: list[list[str] | None] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, find_damage(folder, manifest, mine))
    return [line for part in parts for line in part or []]


def _cause(error: BaseException) -> str:
    """Return the message of the first rank that failed; torch's own holds every traceback."""
    if isinstance(error, CheckpointException):
        failure, _ = next(iter(error.failures.values()))
        return str(failure)
    return str(error)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
