# SPDX-License-Identifier: Apache-2.0
"""Keys and values of all rows, in pages of a few positions that rows take and give back.

The tensor is [layers, pages, 2 (keys, values), g, P, d]: what a step reads of a page lies in
two long pieces. Keys are rotated.
Page 0 belongs to nobody: what rows without a request write goes there.
"""

import torch
from torch import Tensor

from bt_megatron.inference.engine.shapes import StackShape

PAGE_POSITIONS = 32


def make_cache(
    shape: StackShape, *, pages: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Allocate the cache, page 0 included."""
    size = (shape.layers, pages, 2, shape.groups, PAGE_POSITIONS, shape.head_dim)
    return torch.zeros(size, dtype=dtype, device=device)


def page_bytes(shape: StackShape, dtype: torch.dtype) -> int:
    """Return the bytes of a page in all layers, keys and values."""
    return 2 * shape.layers * shape.groups * shape.head_dim * PAGE_POSITIONS * dtype.itemsize


def pages_for(positions: int) -> int:
    """Return how many pages hold so many positions."""
    return -(-positions // PAGE_POSITIONS)


class PageAllocator:
    """Hands out pages; knows nothing of the device."""

    def __init__(self, pages: int) -> None:
        """Start with all pages but page 0 free."""
        self.total = pages - 1
        self._free = list(range(pages - 1, 0, -1))

    @property
    def free(self) -> int:
        """Return how many pages are free."""
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """Take pages; there must be so many."""
        assert count <= len(self._free), "the scheduler counts pages before it takes them"
        taken = self._free[len(self._free) - count :]
        del self._free[len(self._free) - count :]
        return taken

    def give_back(self, pages: list[int]) -> None:
        """Return pages of a request that has ended."""
        self._free.extend(pages)
