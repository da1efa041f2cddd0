# SPDX-License-Identifier: Apache-2.0
"""Pipeline stages as Megatron's schedules want them: layouts and tensor shapes."""

from collections.abc import Callable, Sequence
from typing import Literal

from bt_megatron.config.geometry import token_positions
from bt_megatron.config.schema import BatchConfig, LayoutConfig, ModelConfig
from bt_megatron.parallel.layout import StageSlice

Shape = tuple[int, int, int]
AdjustShapes = Callable[[list[Shape], list[Shape]], tuple[list[Shape], list[Shape]]]


def stage_index(*, rank: int, vp_stage: int, pp: int) -> int:
    """Return which stage of the layout string a process holds as its `vp_stage`-th.

    Stages are dealt out to the processes in turn (interleaved schedule: Narayanan et
    al., 2104.04473, section 2.2).
    """
    return vp_stage * pp + rank


def megatron_layout(
    stages: Sequence[StageSlice], stack: Literal["block", "token"]
) -> list[list[str]] | None:
    """Return one stack's layers in Megatron's own layout form, or None without a pipeline.

    Megatron derives layer numbers and checkpoint keys from it. It wants an
    embedding first and a loss last, and calls every layer a decoder.
    """
    if len(stages) == 1:
        return None
    counts = (s.block_layers if stack == "block" else s.token_layers for s in stages)
    layout = [["decoder"] * count for count in counts]
    layout[0].insert(0, "embedding")
    layout[-1].append("loss")
    return layout


def sent_shapes(
    model: ModelConfig,
    stages: Sequence[StageSlice],
    layout: LayoutConfig,
    batch: BatchConfig,
    *,
    seq_length: int,
) -> list[Shape]:
    """Return the shape of the tensor that each stage sends to the next.

    Before the first token layer that is [n/t, b, g], after it [q*n/t, b, h];
    vanilla models send [s/t, b, h]; n and s are this rank's share under context
    parallelism. The last stage's entry is not used. Interleaved schedules have no use
    for it: there each message is preceded by its shape.
    """
    shapes = []
    cut = layout.cp * (layout.tp if layout.sequence_parallel else 1)
    reached_tokens = False
    for stage in stages:
        reached_tokens |= stage.token_layers > 0
        rows, width = _rows_and_width(model, seq_length, reached_tokens=reached_tokens)
        shapes.append((rows // cut, batch.micro_batch_size, width))
    return shapes


def _rows_and_width(
    model: ModelConfig, seq_length: int, *, reached_tokens: bool
) -> tuple[int, int]:
    if not model.is_block:
        assert model.decoder is not None, "a vanilla model has a decoder"
        return seq_length, model.decoder.hidden_size
    assert model.block_decoder is not None, "a block model has a block decoder"
    assert model.token_decoder is not None, "a block model has a token decoder"
    blocks = seq_length // model.block_length
    if not reached_tokens:
        return blocks, model.block_decoder.hidden_size
    return blocks * token_positions(model), model.token_decoder.hidden_size


def adjust_shapes(shapes: Sequence[Shape], *, rank: int) -> AdjustShapes:
    """Return the hook with which Megatron's 1F1B schedule asks for this rank's shapes.

    Args:
        shapes: from `sent_shapes`.
        rank: pipeline rank.
    """

    def adjust(receive: list[Shape], _send: list[Shape]) -> tuple[list[Shape], list[Shape]]:
        received = [shapes[rank - 1]] if rank > 0 else receive
        return received, [shapes[rank]]

    return adjust
