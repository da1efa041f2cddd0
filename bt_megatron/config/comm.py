# SPDX-License-Identifier: Apache-2.0
"""What each process sends and receives in one optimizer step, computed from the configuration.

Exact, call by call: `tests/dist/test_comm.py` takes a step in many layouts and compares the list
with every operation that entered a process group. It is a step of the steady state, with the
layers of plain torch. Not in it:

- evaluations, checkpoints, the start of a run, and what Megatron asks once in the first step;
- calls over groups of one process, which Megatron makes too, but which send nothing;
- how a library carries out a call: algorithm, channels, and that two pipeline processes use the
  world's communicator for one of the two directions.

With layers of Transformer Engine (kernels.layers) the list is not tested. They make the same calls
over the tp group while userbuffers are off, as ours do. Two things differ: under context
parallelism keys and values are not gathered, but passed around the cp group, in size - 1 turns
forward and with their gradients backward; and weights have another order, so that buckets of an
overlapped reduction may be cut in other places.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bt_megatron.config.geometry import token_positions
from bt_megatron.config.schema import RunConfig
from bt_megatron.config.stage_comm import (
    Call,
    Group,
    Operation,
    Phase,
    own_rows,
    stage_calls,
    value_bytes,
)
from bt_megatron.config.stage_weights import bucket_sizes, stage_weights
from bt_megatron.config.stages import resolve_stages
from bt_megatron.parallel.layout import StageSlice

GRADIENT = 4
"""Bytes of a number of the gradients, which are summed in float32."""
TOTALS = 3 * 8
"""Bytes of loss sum, targets and stop requests, in float64 (training/step.py)."""
SHAPE = 3 * 8
"""Bytes of a message's shape, three int64."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Transfer:
    """Equal calls of one process in one optimizer step."""

    operation: Operation
    """all_gather and reduce_scatter, all_reduce, broadcast, send, recv."""
    group: Group
    """Whose processes take part; model is tp x pp."""
    group_size: int
    """How many they are."""
    peer: int | None
    """Pipeline rank of the other side of a send or recv."""
    why: str
    """What it is for."""
    phase: Phase
    """When; gradients: after the last backward pass; optimizer: update of the weights."""
    calls: int
    """How often in a step."""
    bytes: int
    """Of one call: the tensor that the group has in common, i.e. what is summed, the result of
    an all-gather, the input of a reduce-scatter, the message."""

    @property
    def total(self) -> int:
        """Bytes of all calls."""
        return self.calls * self.bytes

    @property
    def sent(self) -> int:
        """Bytes that leave the process if collectives run around a ring.

        (n - 1) / n of the tensor; all-reduce, a reduce-scatter and an all-gather: twice that.
        """
        if self.operation in ("send", "recv"):
            return self.total if self.operation == "send" else 0
        passes = 2 if self.operation == "all_reduce" else 1
        return passes * self.total * (self.group_size - 1) // self.group_size


def step_communication(config: RunConfig, world_size: int) -> tuple[tuple[Transfer, ...], ...]:
    """List the transfers of a process of each pipeline rank, in one optimizer step.

    Args:
        config: A run that keeps the rules.
        world_size: Number of processes.
    """
    layout = config.layout
    dp = world_size // layout.replica_size
    sizes: dict[Group, int] = {
        "tp": layout.tp,
        "cp": layout.cp,
        "dp_cp": dp * layout.cp,
        "pp": layout.pp,
        "model": layout.tp * layout.pp,
        "world": world_size,
    }
    stages = resolve_stages(config)
    return tuple(
        _transfers(_Process(config, stages, dp=dp, rank=rank).calls(), sizes)
        for rank in range(layout.pp)
    )


def _transfers(calls: Mapping[Call, int], sizes: Mapping[Group, int]) -> tuple[Transfer, ...]:
    return tuple(
        Transfer(
            operation=call.operation,
            group=call.group,
            group_size=sizes[call.group],
            peer=call.peer,
            why=call.why,
            phase=call.phase,
            calls=count,
            bytes=call.bytes,
        )
        for call, count in calls.items()
        if sizes[call.group] > 1
    )


class _Process:
    """A process of one pipeline rank."""

    def __init__(
        self, config: RunConfig, stages: Sequence[StageSlice], *, dp: int, rank: int
    ) -> None:
        self.config, self.stages, self.rank = config, stages, rank
        self.own = stages[rank :: config.layout.pp]
        self.micro_batches = config.batch.global_batch_size // (config.batch.micro_batch_size * dp)
        weights = [stage_weights(config, stage) for stage in self.own]
        self.partial = sum(w.elements for held in weights for w in held if w.is_partial)
        self.buckets = [
            size for held in weights for size in bucket_sizes(held, config, dp=dp, pp_rank=rank)
        ]

    def calls(self) -> Counter[Call]:
        """Count the calls of a step, in the order in which they come first."""
        is_overlapped = self.config.layout.overlap_param_gather
        counted = Counter(self._gathered_weights("forward") if is_overlapped else ())
        for stage in self.own:
            for call in (*self._messages(stage), *stage_calls(self.config, stage)):
                counted[call] += self.micro_batches
        counted.update(self._summed_gradients())
        counted.update(self._sums_of_numbers())
        counted.update(() if is_overlapped else self._gathered_weights("optimizer"))
        return counted

    def _messages(self, stage: StageSlice) -> Iterator[Call]:
        """Yield what a stage exchanges with its neighbours for one micro-batch."""
        if stage.index > 0:
            peer = (self.rank - 1) % self.config.layout.pp
            size = self._output_bytes(self.stages[stage.index - 1])
            yield from self._message("recv", "forward", size, peer)
            yield from self._message("send", "backward", size, peer)
        if stage.index < len(self.stages) - 1:
            peer = (self.rank + 1) % self.config.layout.pp
            size = self._output_bytes(stage)
            yield from self._message("send", "forward", size, peer)
            yield from self._message("recv", "backward", size, peer)

    def _message(self, operation: Operation, phase: Phase, size: int, peer: int) -> Iterator[Call]:
        why = "hidden states" if phase == "forward" else "gradient of hidden states"
        if self.config.layout.vpp > 1:  # training knows the shapes, Megatron's schedule does not
            yield Call(operation, "pp", phase, f"{why}, shape", SHAPE, peer)
        yield Call(operation, "pp", phase, why, size, peer)

    def _output_bytes(self, stage: StageSlice) -> int:
        """Return the bytes that a stage sends to the next (parallel/pipeline.py, sent_shapes)."""
        config, model = self.config, self.config.model
        rows, stack = own_rows(config), model.decoder
        if model.is_block:
            stack = model.block_decoder
            if any(held.token_layers for held in self.stages[: stage.index + 1]):
                rows, stack = rows * token_positions(model), model.token_decoder
        assert stack is not None, "rules.py: a model has the stacks of its architecture"
        cut = config.layout.tp if config.layout.sequence_parallel else 1
        row = config.batch.micro_batch_size * stack.hidden_size * value_bytes(config)
        return rows // cut * row

    def _summed_gradients(self) -> Iterator[Call]:
        """Yield what the data-parallel wrapper and finalize_model_grads sum."""
        layout = self.config.layout
        operation: Operation = "reduce_scatter" if layout.distributed_optimizer else "all_reduce"
        phase: Phase = "backward" if layout.overlap_grad_reduce else "gradients"
        for size in self.buckets:
            yield Call(operation, "dp_cp", phase, "gradients", size * GRADIENT)
        if self.partial:
            why = "gradients of norms and biases"
            yield Call("all_reduce", "tp", "gradients", why, self.partial * GRADIENT)

    def _sums_of_numbers(self) -> Iterator[Call]:
        yield Call("all_reduce", "world", "end of step", "loss, targets, stop requests", TOTALS)
        group: Group = "world" if self.config.layout.distributed_optimizer else "model"
        yield Call("all_reduce", group, "optimizer", "gradient norm", GRADIENT)

    def _gathered_weights(self, phase: Phase) -> Iterator[Call]:
        if self.config.layout.distributed_optimizer:
            for size in self.buckets:
                whole = size * value_bytes(self.config)
                yield Call("all_gather", "dp_cp", phase, "updated weights", whole)
