# SPDX-License-Identifier: Apache-2.0
"""The checkpoints of a run: where they are, which are complete, which are kept. No torch."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from bt_megatron.checkpoint.manifest import MANIFEST

_NAME = re.compile(r"step_(\d{8,})")


def step_folder(checkpoints: Path, step: int) -> Path:
    """Return the folder of a step's checkpoint."""
    return checkpoints / f"step_{step:08d}"


def step_of(folder: Path) -> int | None:
    """Return the step that a folder's name says, or None if it is no checkpoint's."""
    match = _NAME.fullmatch(folder.name)
    return int(match[1]) if match else None


def complete_checkpoints(checkpoints: Path) -> Iterator[Path]:
    """Yield the folders that have a manifest, newest first."""
    if not checkpoints.is_dir():
        return
    steps = {folder: step_of(folder) for folder in checkpoints.iterdir() if folder.is_dir()}
    numbered = [(step, folder) for folder, step in steps.items() if step is not None]
    for _, folder in sorted(numbered, reverse=True):
        if (folder / MANIFEST).is_file():
            yield folder


def superseded(checkpoints: Path, *, keep_last: int, keep_every_steps: int | None) -> list[Path]:
    """Return the complete checkpoints that need not be kept, oldest first.

    Args:
        checkpoints: parent folder.
        keep_last: how many of the newest stay.
        keep_every_steps: multiples of this stay for ever.
    """
    older = list(complete_checkpoints(checkpoints))[keep_last:]
    return [
        folder
        for folder in reversed(older)
        if not keep_every_steps or (step_of(folder) or 0) % keep_every_steps
    ]


def remove_checkpoint(folder: Path) -> None:
    """Delete a checkpoint: the manifest first, so that half of one never looks complete."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
