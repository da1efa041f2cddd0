# SPDX-License-Identifier: Apache-2.0
"""Where the time of a training step goes: which part of the model, forward and backward.

CUDA events at the borders between parts: where a module starts and ends in the forward pass,
and where the gradient of its output arrives in the backward pass, which is when its own begins.
The parts follow each other on one stream, so what lies between two borders belongs to one part.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bt_megatron.checkpoint.state import unwrap
from bt_megatron.data.batches import MicroBatch
from bt_megatron.training.step import TrainingStep
from tools.training_speed import LR

PARTS = (
    "embedder",
    "block_decoder",
    "expansion",
    "token_embedding",
    "token_decoder",
    "decoder",
    "head",
)
"""Modules of a stage, in the order in which a forward pass runs them. The head has the loss."""
OTHER = "other"
"""What lies between two parts in the forward pass, e.g. joining rows."""
UPDATE = "update"
"""Norm of the gradient, clipping, AdamW, weights in bf16."""


def record() -> torch.cuda.Event:
    """Return an event at this place of the current stream."""
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


@dataclass
class Borders:
    """Events of one forward and backward pass, in the order in which they were recorded."""

    forward: list[tuple[str, torch.cuda.Event]] = field(default_factory=list)
    """What begins there."""
    backward: list[tuple[str, torch.cuda.Event]] = field(default_factory=list)

    def enter(self, part: str) -> None:
        """Note that a part of the forward pass begins here."""
        self.forward.append((part, record()))

    def leave(self, part: str, output: Any) -> None:
        """Note that it ends, and when the gradient of its output will arrive."""
        self.forward.append((OTHER, record()))
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, Tensor) and first.requires_grad:
            first.register_hook(lambda _: self.backward.append((part, record())))


@contextlib.contextmanager
def noted_borders(stage: nn.Module) -> Iterator[Borders]:
    """Note the borders of the parts of a stage inside the context."""
    borders, hooks = Borders(), []
    for part in PARTS:
        module = getattr(stage, part, None)
        if module is None:
            continue
        hooks.append(module.register_forward_pre_hook(lambda *_, part=part: borders.enter(part)))
        hooks.append(
            module.register_forward_hook(
                lambda _module, _inputs, output, part=part: borders.leave(part, output)
            )
        )
    try:
        yield borders
    finally:
        for hook in hooks:
            hook.remove()


def time_parts(step: TrainingStep, batches: Sequence[MicroBatch]) -> dict[str, float]:
    """Take a step and return milliseconds on the device by `<part> forward|backward` and update.

    Launched directly, not as a graph: with micro-batches that are too small for the host a part
    counts its waiting as well.

    Args:
        step: of one stage and one micro-batch, after some steps.
        batches: one micro-batch.

    Comm: those of training; must be called by all ranks.
    """
    assert len(batches) == 1, "borders are noted in one pass"
    own = [batch.to(torch.cuda.current_device()) for batch in batches]
    for adam in step.adams:
        adam.count(LR)
    torch.cuda.synchronize()
    with noted_borders(unwrap(step.chunks[0])) as borders:
        begin = record()
        totals = step.accumulate(own)
        end = record()
    step.update(totals)
    updated = record()
    torch.cuda.synchronize()
    forward = [(OTHER, begin), *borders.forward]
    backward = [*borders.backward, (UPDATE, end)]
    # The last event of the forward pass is the end of the head, and the loss begins to go back.
    spans = {**_spans(forward, "forward"), **_spans(backward, "backward")}
    return {**spans, UPDATE: end.elapsed_time(updated)}


def _spans(events: Sequence[tuple[str, torch.cuda.Event]], direction: str) -> dict[str, float]:
    """Return the time from each event to the next by what begins there."""
    spans: dict[str, float] = {}
    for (part, event), (_, following) in zip(events, events[1:], strict=False):
        name = f"{part} {direction}"
        spans[name] = spans.get(name, 0.0) + event.elapsed_time(following)
    return spans
