# SPDX-License-Identifier: Apache-2.0
"""Writing checkpoints while training goes on.

`save` starts to copy what is to be written to host memory and returns. The next
forward and backward pass run meanwhile, and the device changes the weights only when
the copy is done; then `after_step` forks the process that writes it. `poll`, once a step,
finishes what is written: rank 0 hashes the files in a thread and then writes the
manifest. Until the manifest is there the checkpoint does not exist, and what it
replaces is only removed after that.
"""

import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue, AsyncRequest
from torch.distributed.checkpoint.api import CheckpointException

from bt_megatron.checkpoint.folder import remove_checkpoint, step_folder, superseded
from bt_megatron.checkpoint.host_copy import HostCopy
from bt_megatron.checkpoint.manifest import Manifest, data_files, file_entry, write_manifest
from bt_megatron.checkpoint.stall_clock import StallClock
from bt_megatron.config.schema import CheckpointConfig
from bt_megatron.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint that has become complete."""

    folder: Path
    manifest: Manifest
    removed: list[Path]
    """Checkpoints that were removed because this one is complete."""
    begun: float
    """When it was begun, in Unix seconds."""
    stall_s: float = 0.0
    """Seconds that training was held up, since the checkpoint before."""


class CheckpointWriter:
    """Writes the checkpoints of a run; every rank has one."""

    def __init__(
        self, checkpoints: Path, config: CheckpointConfig, *, may_update: torch.cuda.Event
    ) -> None:
        """Prepare to write.

        Args:
            checkpoints: parent folder.
            config: what is kept, and whether writing happens in the background.
            may_update: recorded when what is saved may change; steps wait for it.
        """
        self._checkpoints, self._config = checkpoints, config
        self._copy = HostCopy(may_update)
        self._queue = AsyncCallsQueue()
        self._request: AsyncRequest | None = None
        """What is to be written, while it is being copied."""
        self._has_saved = False
        self.stalls = StallClock()
        self._pending: tuple[Path, Manifest] | None = None
        self._begun = 0.0
        self._sealing: _Sealing | None = None

    @property
    def is_busy(self) -> bool:
        """Whether files of a checkpoint are still being written by some rank."""
        return self._pending is not None

    def reserve(self, state: dict[str, Any]) -> None:
        """Take the host memory that checkpoints need, so that no checkpoint waits for it.

        Args:
            state: from `sharded_state`.

        Comm: none.
        """
        self._copy.reserve(state)

    def save(self, state: dict[str, Any], manifest: Manifest) -> None:
        """Start to write a checkpoint; waits for the one before if that is not finished.

        Args:
            state: from `sharded_state`; its tensors are read until `may_update`.
            manifest: without its files.

        Raises:
            CheckpointError: the folder cannot be written.

        Comm: barriers and gathers over all ranks; must be called by all at the same step.
        """
        with self.stalls.running():
            self.finish()
            folder = step_folder(self._checkpoints, manifest.step)
            _prepare(folder)
            self._pending, self._begun = (folder, manifest), time.time()
            self._copy.start(state)
            self._request = dist_checkpointing.save(
                state,
                str(folder),
                validate_access_integrity=not self._has_saved,  # the parts stay the same
                async_sharded_save=True,
                async_strategy="mcore",
            )
            self._has_saved = True
            if not self._config.async_save:
                self.finish()

    def after_step(self) -> None:
        """Start to write what was copied during the step; call it when the host has its outcome.

        Comm: none, but all ranks must call it equally often.
        """
        if self._request is None:
            return
        with self.stalls.running():
            self._copy.wait()
            self._queue.schedule_async_request(self._request)
            self._request = None

    def poll(self) -> Saved | None:
        """Finish what the background has done by now.

        Returns:
            On rank 0 a checkpoint that has become complete since the last call.

        Comm: one small all-reduce while a checkpoint is being written; must be called by all.
        """
        if self._pending and self._request is None and self._is_written(blocking=False):
            self._seal()
        return self._take_sealed(wait=False)

    def finish(self) -> Saved | None:
        """Wait until everything that was saved is complete.

        Comm: as `poll`; must be called by all ranks.
        """
        with self.stalls.running():
            self.after_step()
            if self._pending and self._is_written(blocking=True):
                self._seal()
            return self._take_sealed(wait=True)

    def _is_written(self, *, blocking: bool) -> bool:
        assert self._pending is not None, "asked for a checkpoint that was not started"
        try:
            return bool(self._queue.maybe_finalize_async_calls(blocking=blocking))
        except CheckpointException as error:
            failure, _ = next(iter(error.failures.values()))
            raise CheckpointError(
                f"{self._pending[0]}: could not be written ({failure}). The checkpoint before it "
                "is whole. Free space or fix the permissions, then start the same command again."
            ) from error

    def _seal(self) -> None:
        assert self._pending is not None, "only what was saved can be sealed"
        folder, manifest = self._pending
        self._pending = None
        if dist.get_rank() == 0:
            begun = self._begun
            self._sealing = _Sealing(lambda: self._complete(folder, manifest, begun=begun))

    def _complete(self, folder: Path, manifest: Manifest, *, begun: float) -> Saved:
        files = {path.name: file_entry(path) for path in data_files(folder)}
        manifest = replace(manifest, files=files)
        write_manifest(folder, manifest)
        removed = superseded(
            self._checkpoints,
            keep_last=self._config.keep_last,
            keep_every_steps=self._config.keep_every_steps,
        )
        for old in removed:
            remove_checkpoint(old)
        return Saved(folder, manifest, removed, begun)

    def _take_sealed(self, *, wait: bool) -> Saved | None:
        if self._sealing is None or not (wait or self._sealing.is_done):
            return None
        sealing, self._sealing = self._sealing, None
        return replace(sealing.result(), stall_s=self.stalls.take())


class _Sealing:
    """Hashing and completing a checkpoint in a thread of rank 0."""

    def __init__(self, work: Callable[[], Saved]) -> None:
        self._work = work
        self._saved: Saved | None = None
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="seal-checkpoint", daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        return not self._thread.is_alive()

    def result(self) -> Saved:
        self._thread.join()
        if self._error is not None:
            raise CheckpointError(
                f"{self._error.filename}: the checkpoint could not be completed ({self._error}). "
                "Free space or fix the permissions, then start the same command again."
            )
        assert self._saved is not None, "a thread that ended without an error has a result"
        return self._saved

    def _run(self) -> None:
        try:
            self._saved = self._work()
        except OSError as error:
            self._error = error


def _prepare(folder: Path) -> None:
    """Make an empty folder, removing what a killed process left there.

    Comm: a barrier; called by all ranks.
    """
    if dist.get_rank() == 0:
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        except OSError as error:
            raise CheckpointError(
                f"{folder}: cannot be made ({error.strerror}). Fix the permissions or choose "
                "another runs_dir."
            ) from error
    dist.barrier()
