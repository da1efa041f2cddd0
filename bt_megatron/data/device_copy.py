# SPDX-License-Identifier: Apache-2.0
"""Batches on their way to the GPU, beside what the GPU computes.

The thread that reads batches also pins them and starts the copy, on a stream of its own. A
step then only makes its stream wait for a copy that has long been done.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bt_megatron.data.batches import MicroBatch


@dataclass(frozen=True, slots=True)
class SentBatches:
    """The micro-batches of a step, possibly still being written to device memory."""

    micro_batches: tuple[MicroBatch, ...]
    written: torch.cuda.Event | None
    """None without a GPU: they are where they were."""

    def receive(self) -> list[MicroBatch]:
        """Return the micro-batches for use on the current stream, without waiting on the host."""
        if self.written is not None:
            stream = torch.cuda.current_stream()
            stream.wait_event(self.written)
            for batch in self.micro_batches:
                for tensor in batch.tensors():
                    tensor.record_stream(stream)  # not reused before this stream has read it
        return list(self.micro_batches)


class Sender:
    """Sends batches to the device that is current when it is made; for one thread at a time."""

    def __init__(self) -> None:
        """Take a stream for the copies; without a GPU batches stay where they are."""
        self._stream = torch.cuda.Stream() if torch.cuda.is_available() else None

    def send(self, batches: Sequence[MicroBatch]) -> SentBatches:
        """Pin batches and start to copy them.

        Args:
            batches: on the CPU.
        """
        if self._stream is None:
            return SentBatches(tuple(batches), None)
        with torch.cuda.stream(self._stream):  # and its device, which a new thread does not have
            sent = tuple(batch.pin_memory().to(self._stream.device) for batch in batches)
            written = torch.cuda.Event()
            written.record()
        return SentBatches(sent, written)
