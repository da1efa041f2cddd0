# SPDX-License-Identifier: Apache-2.0
"""One optimizer step, and the forward passes of an evaluation, by Megatron's schedules."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from bt_megatron.config.schema import RunConfig
from bt_megatron.data.batches import MicroBatch
from bt_megatron.errors import TrainingError
from bt_megatron.parallel.context import own_share
from bt_megatron.parallel.layout import StageSlice
from bt_megatron.parallel.pipeline import adjust_shapes, sent_shapes
from bt_megatron.training.chunk import gathered_weights


@dataclass(frozen=True, slots=True)
class Totals:
    """What the micro batches of all ranks sum to."""

    loss_sum: float
    """Sum of the cross entropies of all targets, in nats."""
    targets: int
    """Targets counted."""
    stop_requests: int = 0
    """Ranks that were asked to stop."""

    @property
    def loss(self) -> float:
        """Mean cross entropy per target, in nats."""
        return self.loss_sum / max(1, self.targets)


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimizer step gave."""

    totals: Totals
    grad_norm: float | None
    """Norm of the gradient before clipping; None if clipping is off, or without an update."""
    is_applied: bool = True
    """Whether the weights were updated."""


class TrainingStep:
    """Forward, backward and update of one step over all micro batches."""

    def __init__(
        self,
        config: RunConfig,
        stages: Sequence[StageSlice],
        chunks: Sequence[DistributedDataParallel],
        optimizer: MegatronOptimizer,
    ) -> None:
        """Bind the parts.

        Args:
            config: the run.
            stages: what each pipeline stage holds.
            chunks: this rank's wrapped stages.
            optimizer: their optimizer.
        """
        self.chunks, self.optimizer = list(chunks), optimizer
        self._config = config
        self._schedule = get_forward_backward_func()
        self._adjust = None
        if config.layout.pp > 1 and config.layout.vpp == 1:
            shapes = sent_shapes(
                config.model,
                stages,
                config.layout,
                config.batch,
                seq_length=config.data.seq_length,
            )
            rank = parallel_state.get_pipeline_model_parallel_rank()
            self._adjust = adjust_shapes(shapes, rank=rank)
        self.chunks[0].config.grad_scale_func = optimizer.scale_loss

    def train(
        self,
        batches: Sequence[MicroBatch],
        *,
        step: int,
        lr: float,
        loss_limit: float = float("inf"),
        stop_requested: bool = False,
    ) -> StepResult:
        """Take one optimizer step, unless the loss is not finite or above a limit.

        Args:
            batches: this rank's micro batches.
            step: number of the step from 0, for messages.
            lr: learning rate of the step.
            loss_limit: above it the weights stay as they are.
            stop_requested: whether this process was asked to stop; the sum over all ranks
                comes back in the totals, so that all know it at the same step.

        Raises:
            TrainingError: the gradient is not finite, and the weights are lost.

        Comm: the schedule's, the optimizer's, one all-reduce of three numbers over all ranks.
        """
        totals = self.accumulate(batches, stop_requested=stop_requested)
        if not (_is_finite(totals.loss) and totals.loss <= loss_limit):
            return StepResult(totals, None, is_applied=False)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        succeeded, norm, _ = self.optimizer.step()
        grad_norm = None if norm is None else float(norm)  # a tensor with Transformer Engine
        if not succeeded or (grad_norm is not None and not _is_finite(grad_norm)):
            raise TrainingError(
                f"step {step}: the gradient norm is {grad_norm} at a loss of {totals.loss:.4f}. "
                "Start the same command again: it resumes before this step and leaves it out."
            )
        return StepResult(totals, grad_norm)

    def accumulate(self, batches: Sequence[MicroBatch], *, stop_requested: bool = False) -> Totals:
        """Compute the gradients of one step and leave the weights as they are.

        Arguments as `train`.

        Comm: the schedule's, one all-reduce of three numbers over all ranks.
        """
        for chunk in self.chunks:
            chunk.train()
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        return self._run(batches, forward_only=False, stop_requested=stop_requested)

    @torch.no_grad()
    def evaluate(self, batches: Sequence[MicroBatch]) -> Totals:
        """Return the loss on micro batches without changing anything.

        Comm: the schedule's, one all-reduce of three numbers over all ranks; gathers of weights
        that the overlap has left open.
        """
        for chunk in self.chunks:
            chunk.eval()
        with gathered_weights(self.chunks):
            return self._run(batches, forward_only=True, stop_requested=False)

    def _run(
        self, batches: Sequence[MicroBatch], *, forward_only: bool, stop_requested: bool
    ) -> Totals:
        extra: dict[str, Any] = {}
        if self._adjust is not None:
            extra["adjust_tensor_shapes_fn"] = self._adjust
        model = self._config.model
        unit = model.block_length if model.is_block else 1
        own = [batch.each(functools.partial(own_share, unit=unit)) for batch in batches]
        logged = self._schedule(
            forward_step_func=_forward,
            data_iterator=[iter(own) for _ in self.chunks],
            model=self.chunks,
            num_microbatches=len(batches),
            seq_length=self._config.data.seq_length,
            micro_batch_size=self._config.batch.micro_batch_size,
            forward_only=forward_only,
            **extra,
        )
        return _sum_over_ranks(logged, stop_requested=stop_requested)


def _forward(batches: Iterator[MicroBatch], chunk: Any) -> tuple[Tensor, Any]:
    batch = next(batches).to(torch.cuda.current_device())
    output = chunk(batch.tokens, batch.mask, batch.targets, batch.target_mask)
    return output, functools.partial(_sum_loss, target_mask=batch.target_mask)


def _sum_loss(losses: Tensor, *, target_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the schedule wants: loss sum, target count, and what to log.

    The schedule divides gradients by the global count once; the logged pair is a
    copy because the schedule scales the loss in place.
    """
    loss_sum = (losses * target_mask).sum()
    count = target_mask.sum()
    logged = torch.stack((loss_sum.detach().double(), count.double()))
    return loss_sum, count.int(), logged


def _sum_over_ranks(logged: Sequence[Tensor], *, stop_requested: bool) -> Totals:
    """Add up over micro batches and ranks; each target is counted on one tensor rank only.

    Comm: all-reduce of three float64 over all ranks.
    """
    totals = torch.zeros(3, dtype=torch.float64, device=torch.cuda.current_device())
    if logged and parallel_state.get_tensor_model_parallel_rank() == 0:
        totals[:2] = torch.stack(tuple(logged)).sum(dim=0)
    totals[2] = float(stop_requested)
    dist.all_reduce(totals)
    loss_sum, targets, stops = totals.tolist()
    return Totals(loss_sum, int(targets), int(stops))


def _is_finite(value: float) -> bool:
    return abs(value) < float("inf")
