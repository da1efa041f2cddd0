# SPDX-License-Identifier: Apache-2.0
"""Host memory that the tensors of a checkpoint are copied to while training goes on.

One block, taken once and used for every checkpoint. It is shared with the processes that are
forked to write it, so that no fork copies it, and page-locked where there is a GPU, so that the
copy runs beside the kernels of the next forward and backward pass.
"""

import mmap
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import (
    ShardedTensor,
    apply_factories,
    is_main_replica,
)
from torch import Tensor

ALIGNMENT = 512
"""Bytes; each tensor begins at a multiple, as torch's own allocations do."""


class HostCopy:
    """A block of host memory and the copy that is under way to it."""

    def __init__(self, done: torch.cuda.Event) -> None:
        """Take no memory yet.

        Args:
            done: is recorded behind each copy.
        """
        self._block: mmap.mmap | None = None
        self._stream = torch.cuda.Stream()
        self._done = done

    @property
    def size(self) -> int:
        """Bytes taken."""
        return len(self._block) if self._block is not None else 0

    def reserve(self, state: dict[str, Any]) -> None:
        """Take the memory that a state needs, if there is not as much yet.

        It takes about a second for three gigabytes, so call it before it is waited for.

        Comm: none.
        """
        apply_factories(state)
        needed = sum(_aligned(entry.data) for entry in _written(state))
        if needed > self.size:
            self._release()
            flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
            self._block = mmap.mmap(-1, needed, flags=flags)
            _page_lock(self._block)

    def start(self, state: dict[str, Any]) -> None:
        """Start to copy what this rank writes of a state, and put the copies into the state.

        The tensors must not change before the event that is recorded behind it.

        Comm: none.
        """
        self.reserve(state)
        self._stream.wait_stream(torch.cuda.current_stream())
        offset = 0
        with torch.cuda.stream(self._stream), torch.no_grad():
            for entry in _written(state):
                if not entry.data.numel():
                    continue
                target = self._tensor(entry.data, offset)
                offset += _aligned(entry.data)
                target.copy_(entry.data.detach(), non_blocking=True)
                entry.data = target
        self._done.record(self._stream)

    def wait(self) -> None:
        """Wait until everything is copied."""
        self._done.synchronize()

    def _tensor(self, like: Tensor, offset: int) -> Tensor:
        """Return a part of the block as a tensor whose storage is just that part."""
        block, count = self._block, like.numel()
        assert block is not None, "memory is taken before it is used"
        flat = torch.frombuffer(block, dtype=like.dtype, count=count, offset=offset)
        return flat.view(like.shape)

    def _release(self) -> None:
        if self._block is not None:
            _page_unlock(self._block)
            self._block = None  # goes with the last tensor that lies in it


def _written(state: dict[str, Any]) -> Iterator[ShardedTensor]:
    """Yield the tensors that this rank is the one to write."""
    entries: Iterable[Any] = nested_values(state)
    for entry in entries:
        if isinstance(entry, ShardedTensor) and is_main_replica(entry.replica_id):
            yield entry


def _aligned(tensor: Tensor) -> int:
    """Return the bytes that a tensor takes, up to where the next may begin."""
    return -(-tensor.numel() * tensor.element_size() // ALIGNMENT) * ALIGNMENT


def _address(block: mmap.mmap) -> int:
    return torch.frombuffer(block, dtype=torch.uint8).data_ptr()


def _page_lock(block: mmap.mmap) -> None:
    """Keep memory in place for the GPU; where that is refused, copies are only slower."""
    if torch.cuda.is_available():
        torch.cuda.cudart().cudaHostRegister(_address(block), len(block), 0)


def _page_unlock(block: mmap.mmap) -> None:
    if torch.cuda.is_available():
        torch.cuda.cudart().cudaHostUnregister(_address(block))
