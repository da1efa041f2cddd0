# SPDX-License-Identifier: Apache-2.0
"""How much memory is left for keys and values."""

import torch

from bt_megatron.errors import ConfigError
from bt_megatron.inference.engine.admission import positions_at_once
from bt_megatron.inference.engine.cache import PAGE_POSITIONS, page_bytes
from bt_megatron.inference.engine.models import BlockModel, Model
from bt_megatron.inference.engine.shapes import StackShape

RESERVED_BYTES = 2 * 2**30
"""Libraries' workspaces, CUDA graphs, and what the allocator cannot use."""


def pages_per_request(model: Model, tokens: int) -> int:
    """Return how many pages a request of so many tokens, prompt and continuation, fills.

    A prompt of s tokens and n new ones take ceil(s/k) - 1 + ceil(n/k) positions, and that is
    ceil((s + n) / k) at most.
    """
    return -(-tokens // (model.position_tokens * PAGE_POSITIONS))


def pages_that_fit(
    model: Model, dtype: torch.dtype, *, most: int, rows: int, limit: int | None,
    device: torch.device,
) -> int:  # fmt: skip
    """Return how many pages to allocate.

    Args:
        model: loaded already.
        dtype: of keys and values.
        most: more are never needed.
        rows: B, rows of a step.
        limit: bytes; None: what the device has left, on a CPU as many as can be needed.
        device: of the engine.

    Raises:
        ConfigError: not even one page fits.
    """
    size = page_bytes(model.cached.shape, dtype)
    if limit is None:
        if device.type != "cuda":
            return most
        free, _ = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        limit = free - RESERVED_BYTES - working_bytes(model, rows)
    pages = min(most, limit // size - 1)
    if pages < 1:
        raise ConfigError(
            f"{max(limit, 0) / 2**30:.1f} GiB are left for keys and values, one page of "
            f"{PAGE_POSITIONS} positions takes {size / 2**20:.1f} MiB. Allow fewer rows."
        )
    return pages


def working_bytes(model: Model, rows: int) -> int:
    """Estimate the bytes that a step and a pass over prompts need besides weights and cache."""
    size = model.dtype.itemsize
    context = model.cached.shape
    stream = positions_at_once(model) * _row_width(context)
    step = rows * _row_width(context)
    if isinstance(model, BlockModel):
        shape = model.tokens.shape
        past = 2 * shape.layers * model.block_positions * shape.groups * shape.head_dim
        step = max(step, rows * (model.expanded * _row_width(shape) + past))
    return int(1.25 * size * (stream + step + 2 * rows * model.vocab_size))


def _row_width(shape: StackShape) -> int:
    # Elements of a row that live at a time: stream, norm, first product, input of the last.
    return 3 * shape.width + shape.mixed + shape.ffn_inputs + shape.attended + shape.ffn
