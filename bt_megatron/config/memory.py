# SPDX-License-Identifier: Apache-2.0
"""Memory of one process, an ESTIMATE in bytes, by part.

Formula `bt-memory-v4`. With e bytes per value of the training precision (4, or 2 for
bf16), t the tensor-parallel size, and everything of a stage counted as cut by t:

    weights       e per parameter
    main weights  4 per parameter if bf16, divided by dp cp with the distributed optimizer
    gradients     4 per parameter (one fp32 buffer, whole on each process)
    optimizer     8 per parameter (two fp32 moments), divided by dp cp as above
    fp8 weights   2 per weight of the products in FP8: the copy and its transpose, which
                  Hopper's products want; kept from one micro-batch to the next
    activations   kept for backward, for each micro-batch in flight: per layer and position
                  residual stream and norm outputs, 3 h (parallel residual) or 4 h
                  (divided by t under sequence parallelism only), and
                  (qkv + a d + 2 f) / t (3 f with swiglu; T5: + 2 h + 4 h / t; causal
                  attention with rotary: + (a + c) d / t, queries and keys once more)
                  and at the ends the embedder's output and the expansion's in- and output
    logits        e per logit of one micro-batch, or of kernels.head_chunk_tokens rows of it:
                  a buffer that becomes the gradient in place (fp32 sums stay in registers)

A process has 1/cp of the positions, and the parameters of all its stages (one for each
virtual stage). How many micro-batches of each are in flight is read off the schedule
(pipeline_schedule.py): without virtual stages pp - rank, at most m; with them up to
2 (pp - 1 - rank) + (vpp - 1) pp + 1 passes, each of one of its stages.

With kernels.fp8 the products of the decoders' layers keep their inputs in 1 byte per value:
both norm outputs and the activation, 2 h + f / t. The output of attention stays as it is (a d
values), since it can be scaled the same way again; under delayed scaling it cannot: 1 byte, and
where attention is causal its own copy too. Scales (4 bytes per 128 values with block scaling)
are left out.

With memory.recompute=selective the activation of a layer, f / t values, is not kept, and once
per process it is there in the training precision. With memory.recompute=full a layer keeps its
input only, h values per position, and once per process the largest layer is there as above,
though not together with the logits: the larger of the two counts. With memory.token_slices=S
the token layers and the head of a stage keep what enters them, and once per process what they
keep without full recomputation is there, divided by S; so are logits, at the same time.

Attention is taken to be fused (scores are not kept). Left out: the CUDA context, NCCL
buffers, keys and values of other processes under cp, workspaces and fragmentation. How near
it comes to what was measured: docs/benchmarks/memory.json, held to 10 % by a test.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from bt_megatron.config.activations import divide, stage_activations, value_bytes
from bt_megatron.config.geometry import fp8_stacks
from bt_megatron.config.params import element_parameters, layer_matrices
from bt_megatron.config.pipeline_schedule import peak_held
from bt_megatron.config.schema import RunConfig
from bt_megatron.parallel.layout import StageSlice, sum_by_stage

FORMULA = "bt-memory-v4"
"""Name and version of the estimate."""

FP8_COPY = 2
"""Bytes that FP8 adds for each weight of a product: one, and one for its transpose."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryEstimate:
    """Bytes of one process, by part."""

    weights: int
    """Weights in the training precision."""
    main_weights: int
    """fp32 copy that the optimizer works on (bf16 only)."""
    fp8_weights: int
    """Copies of the decoders' weights in FP8."""
    gradients: int
    """fp32 gradient buffer."""
    optimizer: int
    """Adam's two moments."""
    activations: int
    """What the backward pass needs."""
    logits: int
    """Logits, which become their gradient."""

    @property
    def total(self) -> int:
        """All parts."""
        return sum(getattr(self, item.name) for item in fields(self))


def estimate_memory(
    config: RunConfig, stages: Sequence[StageSlice], *, dp: int, micro_batches: int
) -> tuple[MemoryEstimate, ...]:
    """Estimate the bytes of a process of each pipeline rank.

    Args:
        config: The run.
        stages: What each of the pp x vpp stages holds.
        dp: Data-parallel size.
        micro_batches: Micro-batches of one replica per optimizer step.
    """
    layout = config.layout
    value = value_bytes(config)
    shards = layout.tp * (dp * layout.cp if layout.distributed_optimizer else 1)
    parameters = sum_by_stage(element_parameters(config.model), stages)
    copies = [_fp8_weights(config, stage) for stage in stages]
    kept = stage_activations(config, stages)
    held = peak_held([stage.held for stage in kept], pp=layout.pp, micro_batches=micro_batches)
    estimates = []
    for rank in range(layout.pp):
        count, own = sum(parameters[rank :: layout.pp]), kept[rank :: layout.pp]
        logits, working = (max(getattr(s, part) for s in own) for part in ("logits", "working"))
        if config.memory.token_slices == 1:
            working = max(0, working - logits)  # a layer is computed again when they are gone
        estimates.append(
            MemoryEstimate(
                weights=divide(value * count, layout.tp),
                main_weights=divide(4 * count, shards) if value == 2 else 0,
                fp8_weights=divide(sum(copies[rank :: layout.pp]), layout.tp),
                gradients=divide(4 * count, layout.tp),
                optimizer=divide(8 * count, shards),
                activations=held[rank] + working,
                logits=logits,
            )
        )
    return tuple(estimates)


def _fp8_weights(config: RunConfig, stage: StageSlice) -> int:
    """Count the bytes of a stage's weights in FP8, over all tensor-parallel ranks."""
    if config.kernels.fp8 == "none":
        return 0
    layers = {
        "model.block_decoder": stage.block_layers,
        "model.token_decoder": stage.token_layers,
        "model.decoder": stage.token_layers,
    }
    stacks = fp8_stacks(config.model)
    return sum(FP8_COPY * layers[key] * layer_matrices(stack) for key, stack in stacks)
