# SPDX-License-Identifier: Apache-2.0
"""What follows from a configuration and a number of processes, before anything runs."""

from dataclasses import asdict, dataclass
from typing import Any

from bt_megatron.config import flops, memory
from bt_megatron.config.flops import ForwardFlops, element_flops, forward_flops
from bt_megatron.config.memory import MemoryEstimate, estimate_memory
from bt_megatron.config.params import ParameterCounts, count_parameters, element_parameters
from bt_megatron.config.pipeline_schedule import bubble_fraction, idle_fraction
from bt_megatron.config.rules import check
from bt_megatron.config.schema import RunConfig
from bt_megatron.config.stages import resolve_stages
from bt_megatron.parallel.layout import StageSlice, format_stages, sum_by_stage


@dataclass(frozen=True, kw_only=True, slots=True)
class StagePlan:
    """One pipeline stage."""

    slice: StageSlice
    """What it holds."""
    parameters: int
    """Its parameters, over all tensor-parallel ranks."""
    flops_share: float
    """Its part of the model's FLOPs (full attention)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessPlan:
    """The processes of one pipeline rank."""

    stages: tuple[int, ...]
    """Indices of its stages: one, or one for each virtual stage."""
    parameters: int
    """Their parameters, over all tensor-parallel ranks."""
    flops_share: float
    """Their part of the model's FLOPs (full attention)."""
    memory: MemoryEstimate
    """Estimated bytes of each process."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The facts of a run that a user did not write but decided."""

    world_size: int
    """Processes."""
    dp: int
    """Data-parallel size: world_size / (tp x cp x pp)."""
    micro_batches: int
    """Micro-batches that each replica accumulates per optimizer step."""
    tokens_per_step: int
    """Tokens of the data per optimizer step, pads included."""
    steps: int
    """Optimizer steps."""
    total_tokens: int
    """Tokens of the whole run, pads included."""
    layout: str
    """Layout string, with auto resolved."""
    stages: tuple[StagePlan, ...]
    """Pipeline stages, first to last; stage i is on pipeline rank i % pp."""
    processes: tuple[ProcessPlan, ...]
    """Pipeline ranks, first to last."""
    bubble: float
    """Part of a step that a process waits, with stages of equal work."""
    idle: float
    """Part of a step that a process waits on average, with the work of these stages."""
    parameters: ParameterCounts
    """Parameters by component."""
    flops: ForwardFlops
    """Forward FLOPs of a sequence by component, full attention."""
    flops_causal: ForwardFlops
    """The same with causal attention."""

    @property
    def training_flops(self) -> int:
        """FLOPs of the whole run, full attention."""
        sequences = self.total_tokens // self.flops.seq_length
        return sequences * self.flops.training_per_sequence

    @property
    def imbalance(self) -> float:
        """Work of the busiest pipeline rank in units of the mean; 1 if all are equal."""
        return max(process.flops_share for process in self.processes) * len(self.processes)

    @property
    def fullest_process(self) -> int:
        """Pipeline rank whose processes need the most memory."""
        totals = [process.memory.total for process in self.processes]
        return totals.index(max(totals))


def make_plan(config: RunConfig, world_size: int) -> Plan:
    """Check a configuration and compute its plan.

    Args:
        config: The run.
        world_size: Number of processes.

    Raises:
        ConfigError: listing every broken rule.
    """
    check(config, world_size=world_size)
    layout, batch, seq_length = config.layout, config.batch, config.data.seq_length
    dp = world_size // layout.replica_size
    micro_batches = batch.global_batch_size // (batch.micro_batch_size * dp)
    tokens_per_step = batch.global_batch_size * seq_length
    slices = resolve_stages(config)
    stages = _stages(config, slices)
    shares = [stage.flops_share for stage in stages]
    memories = estimate_memory(config, slices, dp=dp, micro_batches=micro_batches)
    return Plan(
        world_size=world_size,
        dp=dp,
        micro_batches=micro_batches,
        tokens_per_step=tokens_per_step,
        steps=config.train.steps,
        total_tokens=tokens_per_step * config.train.steps,
        layout=format_stages(slices),
        stages=stages,
        processes=_processes(stages, memories),
        bubble=bubble_fraction(pp=layout.pp, micro_batches=micro_batches, vpp=layout.vpp),
        idle=idle_fraction(shares, pp=layout.pp, micro_batches=micro_batches),
        parameters=count_parameters(config.model),
        flops=forward_flops(config.model, seq_length=seq_length),
        flops_causal=forward_flops(config.model, seq_length=seq_length, convention="causal"),
    )


def plan_mapping(plan: Plan) -> dict[str, Any]:
    """Return a plan as values that JSON can hold, with the names of the formulas."""
    mapping = asdict(plan)
    for stage, values in zip(plan.stages, mapping["stages"], strict=True):
        values["slice"]["letters"] = stage.slice.letters
    for process, values in zip(plan.processes, mapping["processes"], strict=True):
        values["memory"]["total"] = process.memory.total
    mapping["imbalance"] = plan.imbalance
    mapping["parameters"] |= {
        "non_embedding": plan.parameters.non_embedding,
        "total": plan.parameters.total,
    }
    for name, counted in (("flops", plan.flops), ("flops_causal", plan.flops_causal)):
        mapping[name] |= {
            "training_per_sequence": counted.training_per_sequence,
            "training_per_token": counted.training_per_token,
        }
    mapping["training_flops"] = plan.training_flops
    mapping["formulas"] = {"flops": flops.FORMULA, "memory": memory.FORMULA}
    return mapping


def _stages(config: RunConfig, slices: tuple[StageSlice, ...]) -> tuple[StagePlan, ...]:
    """Describe each stage."""
    work = element_flops(config.model, seq_length=config.data.seq_length)
    shares = [part / sum(work) for part in sum_by_stage(work, slices)]
    parameters = sum_by_stage(element_parameters(config.model), slices)
    return tuple(
        StagePlan(slice=held, parameters=count, flops_share=share)
        for held, count, share in zip(slices, parameters, shares, strict=True)
    )


def _processes(
    stages: tuple[StagePlan, ...], memories: tuple[MemoryEstimate, ...]
) -> tuple[ProcessPlan, ...]:
    """Describe the processes of each pipeline rank."""
    held = [stages[rank :: len(memories)] for rank in range(len(memories))]
    return tuple(
        ProcessPlan(
            stages=tuple(stage.slice.index for stage in own),
            parameters=sum(stage.parameters for stage in own),
            flops_share=sum(stage.flops_share for stage in own),
            memory=memory,
        )
        for own, memory in zip(held, memories, strict=True)
    )
