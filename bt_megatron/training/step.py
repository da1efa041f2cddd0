# SPDX-License-Identifier: Apache-2.0
"""One optimizer step, and the forward passes of an evaluation, by Megatron's schedules."""

import functools
import math
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
from bt_megatron.parallel.context import own_share
from bt_megatron.parallel.fused_adam import fused_adams
from bt_megatron.parallel.layout import StageSlice
from bt_megatron.parallel.pipeline import adjust_shapes, sent_shapes
from bt_megatron.parallel.update_gate import UpdateGate
from bt_megatron.training.chunk import gathered_weights
from bt_megatron.training.step_graph import StepGraph


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
    grad_norm: float
    """Norm of the gradient before clipping."""
    is_applied: bool = True
    """Whether it has changed the weights."""


class TrainingStep:
    """Forward, backward and update of one step over all micro batches.

    The host waits for the device once in a step, at its end, when all is launched.

    Attributes:
        chunks: this rank's wrapped stages.
        optimizer: their optimizer.
        adams: what is inside of it.
        graph: the recorded step, with `kernels.cuda_graphs`.
        may_update: weights and optimizer state change only after this event; a checkpoint that
            is being copied records it.
    """

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
        self._device = torch.cuda.current_device()
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
        self._gate = UpdateGate(self._device)
        self.adams = fused_adams(optimizer)
        for adam in self.adams:
            adam.gate = self._gate
        # External: a graph waits for what was recorded before its launch. Recorded once here,
        # because waiting for an event that never was would be left out of the graph.
        self.may_update = torch.cuda.Event(external=True)
        self.may_update.record()
        self._stop_requested = torch.zeros((), dtype=torch.float64, device=self._device)
        self.graph = StepGraph(self._launch) if config.kernels.cuda_graphs else None

    def train(
        self,
        batches: Sequence[MicroBatch],
        *,
        lr: float,
        max_loss: float = float("inf"),
        stop_requested: bool = False,
    ) -> StepResult:
        """Take one optimizer step.

        If loss or gradient is not finite, or the loss too large, weights and moments stay as
        they are.

        Args:
            batches: this rank's micro batches.
            lr: learning rate of the step.
            max_loss: mean loss above which nothing changes.
            stop_requested: whether this process was asked to stop; the sum over all ranks
                comes back in the totals, so that all know it at the same step.

        Comm: those of `launch`.
        """
        self._gate.max_loss.fill_(max_loss)
        outcome = self.launch(batches, lr=lr, stop_requested=stop_requested)
        loss_sum, targets, stops, grad_norm = outcome.tolist()  # the host waits here
        totals = Totals(loss_sum, int(targets), int(stops))
        finite = math.isfinite(totals.loss) and math.isfinite(grad_norm)
        is_applied = finite and totals.loss <= max_loss
        if not is_applied:
            for adam in self.adams:
                adam.take_back()
        return StepResult(totals, grad_norm, is_applied)

    def launch(
        self, batches: Sequence[MicroBatch], *, lr: float, stop_requested: bool = False
    ) -> Tensor:
        """Launch one optimizer step without waiting for the device.

        Arguments as `train`.

        Returns:
            [4] float64 on the device: the three numbers of `Totals` and the gradient norm.

        Comm: the schedule's, the optimizer's, one all-reduce of three numbers over all ranks.
        """
        for adam in self.adams:
            adam.count(lr)
        self._stop_requested.fill_(float(stop_requested))
        own = [batch.to(self._device) for batch in batches]
        return self._launch(own) if self.graph is None else self.graph.launch(own)

    def _launch(self, batches: Sequence[MicroBatch]) -> Tensor:
        return self.update(self.accumulate(batches))

    def update(self, totals: Tensor) -> Tensor:
        """Update the weights from the gradients that `accumulate` has left, if all is finite.

        Args:
            totals: what `accumulate` has returned.

        Returns:
            As `launch`.

        Comm: the optimizer's.
        """
        self.optimizer.prepare_grads()
        norm = torch.as_tensor(self.optimizer.get_grad_norm(), device=self._device).reshape(1)
        clip_norm = self._config.optimizer.clip_grad
        norm = self._gate.set(totals[0], totals[1], norm, clip_norm=clip_norm)
        torch.cuda.current_stream().wait_event(self.may_update)
        self.optimizer.step_with_ready_grads()
        return torch.cat((totals, norm))

    def accumulate(self, batches: Sequence[MicroBatch]) -> Tensor:
        """Compute the gradients of one step and leave the weights as they are.

        They are those of the sum over all targets; `update` divides by their number.

        Args:
            batches: this rank's micro batches.

        Returns:
            [3] float64 on the device, the numbers of `Totals`.

        Comm: the schedule's, one all-reduce of three numbers over all ranks.
        """
        for chunk in self.chunks:
            chunk.train()
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        return self._run(batches, forward_only=False)

    @torch.no_grad()
    def evaluate(self, batches: Sequence[MicroBatch], *, stop_requested: bool = False) -> Totals:
        """Return the loss on micro batches without changing anything.

        Args:
            batches: this rank's micro batches.
            stop_requested: as in `train`.

        Comm: the schedule's, one all-reduce of three numbers over all ranks; gathers of weights
        that the overlap has left open.
        """
        self._stop_requested.fill_(float(stop_requested))
        for chunk in self.chunks:
            chunk.eval()
        with gathered_weights(self.chunks):
            loss_sum, targets, stops = self._run(batches, forward_only=True).tolist()
        return Totals(loss_sum, int(targets), int(stops))

    def _run(self, batches: Sequence[MicroBatch], *, forward_only: bool) -> Tensor:
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
        return _sum_over_ranks(logged, self._stop_requested)


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


def _sum_over_ranks(logged: Sequence[Tensor], stop_requested: Tensor) -> Tensor:
    """Add up over micro batches and ranks; each target is counted on one tensor rank only.

    Args:
        logged: [2] float64 of each micro batch, sum of losses and number of targets.
        stop_requested: one float64.

    Returns:
        [3] float64, the numbers of `Totals`.

    Comm: all-reduce of three float64 over all ranks.
    """
    totals = torch.zeros(3, dtype=torch.float64, device=stop_requested.device)
    if logged and parallel_state.get_tensor_model_parallel_rank() == 0:
        totals[:2] = torch.stack(tuple(logged)).sum(dim=0)
    totals[2] = stop_requested
    dist.all_reduce(totals)
    return totals
