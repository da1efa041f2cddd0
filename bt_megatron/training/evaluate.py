# SPDX-License-Identifier: Apache-2.0
"""The loss on the validation split, in nats per token and bits per byte of text."""

import itertools
import math

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state

from bt_megatron.data.batches import MicroBatch, ValidationBatches
from bt_megatron.observe.record import EvaluationRecord
from bt_megatron.training.step import Totals, TrainingStep
from bt_megatron.training.stop import StopRequest

GROUP = 32
"""Micro-batches, times pipeline stages, after which the ranks look whether to stop."""


class Evaluation:
    """Evaluates the same validation samples every time."""

    def __init__(
        self, batches: ValidationBatches, step: TrainingStep, byte_lengths: np.ndarray
    ) -> None:
        """Bind the parts.

        Args:
            batches: this data-parallel rank's part of the samples.
            step: runs the forward passes.
            byte_lengths: [v] UTF-8 bytes that each token stands for.
        """
        self._batches, self._step = batches, step
        self._byte_lengths = torch.from_numpy(byte_lengths.astype(np.int64))

    def measure(self, *, step: int, stop: StopRequest) -> EvaluationRecord | None:
        """Evaluate after `step` optimizer steps.

        Args:
            step: for the record.
            stop: whether this process was asked to stop.

        Returns:
            What was measured; None if a rank was asked to stop before that.

        Comm: the schedule's; one small all-reduce a group of micro-batches, and one at the end;
        must be called by all ranks.
        """
        stages = parallel_state.get_pipeline_model_parallel_world_size()
        loss_sum, targets, batches = 0.0, 0, list(self._batches)
        for group in itertools.batched(batches, GROUP * stages):
            part = self._step.evaluate(group, stop_requested=stop.is_set)
            if part.stop_requests:
                return None
            loss_sum, targets = loss_sum + part.loss_sum, targets + part.targets
        totals = Totals(loss_sum, targets)
        text_bytes = self._sum_bytes(batches)
        bits = totals.loss_sum / math.log(2)
        return EvaluationRecord(
            step=step,
            loss=totals.loss,
            bits_per_byte=bits / text_bytes if text_bytes else None,
            targets=totals.targets,
        )

    def _sum_bytes(self, batches: list[MicroBatch]) -> int:
        """Count the bytes of text that the targets spell.

        Comm: all-reduce over the data-parallel group.
        """
        count = sum(int(self._byte_lengths[b.targets[b.target_mask]].sum()) for b in batches)
        total = torch.tensor(count, device=torch.cuda.current_device())
        dist.all_reduce(total, group=parallel_state.get_data_parallel_group())
        return int(total)
