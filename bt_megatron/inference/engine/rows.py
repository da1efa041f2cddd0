# SPDX-License-Identifier: Apache-2.0
"""What the device knows of each row of the running batch.

A row is a place in the batch, taken by one request at a time. Everything that a step reads
or writes is here, so that a step needs nothing from the host.
"""

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor


class Whole(IntEnum):
    """Columns of `Rows.whole`."""

    LENGTH = 0
    """Positions in the cache."""
    ALIVE = 1
    """1 while tokens of this row count; 0 also for rows without a request."""
    REMAINING = 2
    """Tokens that may still be written."""
    DRAWN = 3
    """Tokens written; with the seed, the counter of the random numbers."""
    END = 4
    """Id of the token that ends the text; -1: none."""
    TOP_K = 5
    """0: all tokens."""
    SEED_LOW = 6
    SEED_HIGH = 7


class Real(IntEnum):
    """Columns of `Rows.real`."""

    TEMPERATURE = 0
    """0: always the best token."""
    TOP_P = 1
    PENALTY = 2
    """Divides positive logits of tokens that occurred, multiplies negative ones; 1: none."""


TOP_LOGPROBS = 5


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the requests of a batch ask of a step."""

    plain: bool
    """Nothing but the best tokens."""
    top: bool
    """Somebody wants the most likely tokens reported."""


@dataclass(frozen=True, slots=True)
class Rows:
    """State of B rows on the device."""

    whole: Tensor
    """[B, 8] int32"""
    real: Tensor
    """[B, 3] float32"""
    tokens: Tensor
    """[B, k] int32: the last block; vanilla: the last tokens, of which the last one is read"""
    logprobs: Tensor
    """[B, k] float32, of those tokens before temperature and filters"""
    top_ids: Tensor
    """[B, k, 5] int32, filled by steps that are asked for it"""
    top_logprobs: Tensor
    """[B, k, 5] float32"""
    table: Tensor
    """[B, pages of a row] int32: pages of the cache; 0 is nobody's"""
    seen: Tensor
    """[B, V] uint8: tokens that occurred, kept for rows with a penalty"""

    @property
    def count(self) -> int:
        """Return B."""
        return self.whole.shape[0]

    def first(self, count: int) -> "Rows":
        """Return a view of the first rows."""
        return Rows(*(getattr(self, name)[:count] for name in self.__slots__))

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copy rows [n] to other places [n]; the old places die."""
        for tensor in (self.whole, self.real, self.tokens, self.table, self.seen):
            tensor[target] = tensor[source]
        self.kill(source)

    def kill(self, rows: Tensor) -> None:
        """Make rows [n] stop counting, and forget their pages."""
        self.whole[rows, Whole.ALIVE] = 0
        self.table[rows] = 0


@dataclass(frozen=True, slots=True)
class Prompts:
    """Where the cache holds prompts that are being read."""

    lengths: Tensor
    """[B] int32, positions of each"""
    table: Tensor
    """[B, pages of a row] int32"""


def make_rows(
    count: int, *, tokens: int, pages: int, vocab_size: int, device: torch.device
) -> Rows:
    """Return dead rows.

    Args:
        count: B.
        tokens: k, tokens of a step.
        pages: pages of the longest row.
        vocab_size: V.
        device: where they live.
    """

    def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(count, *shape, dtype=dtype, device=device)

    return Rows(
        whole=zeros(len(Whole), dtype=torch.int32),
        real=zeros(len(Real), dtype=torch.float32),
        tokens=zeros(tokens, dtype=torch.int32),
        logprobs=zeros(tokens, dtype=torch.float32),
        top_ids=zeros(tokens, TOP_LOGPROBS, dtype=torch.int32),
        top_logprobs=zeros(tokens, TOP_LOGPROBS, dtype=torch.float32),
        table=zeros(pages, dtype=torch.int32),
        seen=zeros(vocab_size, dtype=torch.uint8),
    )
