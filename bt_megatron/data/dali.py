# SPDX-License-Identifier: Apache-2.0
"""Steps read through NVIDIA DALI: the same batches, copied to the device by its pipeline.

The source of the pipeline is a pure function of the iteration, so a pipeline
that is built for a step gives what one that has run up to it would: the
position is the step, and resuming needs no state of DALI. Targets are lined up
where the tokens arrive, so half as many bytes cross to a GPU. Without a GPU the
pipeline runs on the CPU.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bt_megatron.data.batches import MicroBatch, TrainingBatches, build_micro_batch
from bt_megatron.data.device_copy import SentBatches
from bt_megatron.errors import DataError


class DaliSteps:
    """Reads steps in order; `read` is what `PrefetchedBatches` calls.

    `PrefetchedBatches` reads ahead in its thread, so the pipeline holds one
    step: an error comes up at the step that it is about.
    """

    def __init__(self, batches: TrainingBatches, *, first_step: int) -> None:
        """Build the pipeline.

        Args:
            batches: what to read.
            first_step: the step to start with.

        Raises:
            DataError: DALI is not installed.
        """
        self._batches = batches
        self._first_step = first_step
        self._next_step = first_step
        self._shape = batches.positions(first_step).shape  # [micro-batches, b]
        self._stream = torch.cuda.Stream() if torch.cuda.is_available() else None
        self._pipeline = self._build()

    def read(self, step: int) -> SentBatches:
        """Read the micro-batches of the next step."""
        assert step == self._next_step, f"step {step} asked for, {self._next_step} is next"
        self._next_step += 1
        if self._stream is None:
            return SentBatches(tuple(self._run()), None)
        with torch.cuda.stream(self._stream):  # and its device, which a new thread does not have
            batches = tuple(self._run(cuda_stream=self._stream))
            written = torch.cuda.Event()
            written.record()
        return SentBatches(batches, written)

    def _run(self, **options: Any) -> Iterator[MicroBatch]:
        outputs = self._pipeline.run(**options)
        tokens, mask = (self._own(output.as_tensor()) for output in outputs)
        for t, m in zip(tokens, mask, strict=True):
            yield build_micro_batch(t, m, target_shift=self._batches.target_shift)

    def _own(self, output: Any) -> Tensor:
        """Copy what the pipeline will write over: [micro-batches, b, s]."""
        on_cpu = self._stream is None
        tensor = torch.from_numpy(np.asarray(output)) if on_cpu else torch.from_dlpack(output)
        return tensor.clone().view(*self._shape, -1)

    def _source(self, info: Any) -> list[NDArray[Any]]:
        tokens, mask = self._batches.read(self._first_step + info.iteration)
        return [array.reshape(-1, array.shape[-1]) for array in (tokens, mask)]

    def _build(self) -> Any:
        try:
            from nvidia.dali import Pipeline, fn
        except ImportError as error:
            raise DataError(
                f"data.loader - is dali, and NVIDIA DALI cannot be imported: {error} - install it "
                "with `pip install .[gpu]`, or set data.loader=memmap"
            ) from error
        pipeline = Pipeline(
            batch_size=int(np.prod(self._shape)),
            num_threads=1,
            device_id=None if self._stream is None else self._stream.device.index,
            prefetch_queue_depth=1,
        )
        with pipeline:
            outputs = fn.external_source(
                source=self._source, num_outputs=2, batch=True, batch_info=True
            )
            pipeline.set_outputs(*(o if self._stream is None else o.gpu() for o in outputs))
        pipeline.build()
        return pipeline
