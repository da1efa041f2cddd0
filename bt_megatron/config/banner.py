# SPDX-License-Identifier: Apache-2.0
"""A plan as the few lines that are printed before a run starts."""

from bt_megatron.config import flops
from bt_megatron.config.devices import Fit
from bt_megatron.config.memory import MemoryEstimate
from bt_megatron.config.plan import Plan
from bt_megatron.config.schema import DataConfig, ModelConfig, RunConfig

GIB = 2**30
"""Bytes."""
_RECOMPUTED = {
    "none": "",
    "selective": "; activations of feed-forward layers computed again in backward",
    "full": "; layers computed again in backward",
}
"""What `memory.recompute` adds to the line about memory."""


def plan_lines(plan: Plan, config: RunConfig) -> list[str]:
    """Write a plan as at most 12 lines of `topic  facts`."""
    topics = {
        "run": f"{config.name} in {config.run_dir}",
        "model": _model(config.model),
        "parameters": _parameters(plan),
        "layout": _layout(plan, config),
        "stages": _stages(plan),
        "batch": (
            f"{config.batch.global_batch_size:,} sequences of {config.data.seq_length:,} = micro "
            f"batch {config.batch.micro_batch_size} x dp {plan.dp} x {plan.micro_batches} "
            f"accumulated; {plan.tokens_per_step:,} tokens per step"
        ),
        "steps": f"{plan.steps:,}, {_short(plan.total_tokens, 'TBMk')} tokens in all",
        "schedule": _schedule(config),
        "precision": _precision(config),
        "flops": (
            f"{_short(plan.flops.training_per_token)} per token with full attention "
            f"({_short(plan.flops_causal.training_per_token)} causal), {flops.FORMULA}; "
            f"{plan.training_flops:.3g} in all"
        ),
        "memory": _memory(plan, config),
        "data": data_sources(config.data),
    }
    return [f"{topic:<11}{facts}" for topic, facts in topics.items()]


def data_sources(data: DataConfig) -> str:
    """Name the data folder of a run, or those that it mixes with their shares."""
    if data.path is not None:
        return data.path
    total = sum(subset.weight for subset in data.mixture.values())
    parts = []
    for name, subset in data.mixture.items():
        limit = f", at most {subset.max_epochs:g} epochs" if subset.max_epochs else ""
        parts.append(f"{name} {subset.weight / total:.1%}{limit}")
    return "; ".join(parts)


def device_line(fit: Fit, config: RunConfig) -> str:
    """Write whether a run fits a device, and what would."""
    needed = f"about {fit.needed_gib:.1f} of {fit.device.memory_gib:.1f} GiB"
    verdict = "fits" if fit.fits else "does not fit"
    facts = f"{fit.device.name}: {verdict}, {needed} with what is outside of torch"
    if fit.largest_micro_batch is None:
        facts += (
            f"; not even one sequence does ({fit.largest_gib:.1f} GiB): use memory.recompute="
            "selective or full, memory.token_slices, or a larger layout.tp or layout.pp"
        )
    elif fit.largest_micro_batch == config.batch.micro_batch_size:
        facts += "; a larger micro-batch does not"
    else:
        facts += (
            f"; largest that does: batch.micro_batch_size={fit.largest_micro_batch} "
            f"({fit.largest_gib:.1f} GiB)"
        )
    return f"{'device':<11}{facts} (an estimate)"


def _short(number: float, units: str = "TGMk") -> str:
    """Write a large number with three digits and a unit letter for 1e12, 1e9, 1e6 or 1e3."""
    for unit, size in zip(units, (1e12, 1e9, 1e6, 1e3), strict=True):
        if number >= size:
            scaled = number / size
            return f"{scaled:.0f}{unit}" if scaled >= 100 else f"{scaled:.3g}{unit}"
    return f"{number:.3g}"


def _model(model: ModelConfig) -> str:
    if not model.is_block:
        return f"vanilla, vocabulary {model.vocab_size:,}"
    token, embedder = model.token_decoder, model.embedder
    assert token is not None, "rules.py: a block model has a token decoder"
    assert embedder is not None, "rules.py: a block model has an embedder"
    reach = f"prefix length {token.prefix_length}" if token.strategy == "prefix" else token.strategy
    return (
        f"block, block length {model.block_length}, {embedder.kind} embedder, {reach}, "
        f"vocabulary {model.vocab_size:,}"
    )


def _parameters(plan: Plan) -> str:
    counts = plan.parameters
    names = ("embedder", "block_decoder", "expansion", "token_embedding", "token_decoder")
    parts = [
        f"{name.replace('_', ' ')} {_short(getattr(counts, name), 'TBMk')}"
        for name in (*names, "decoder", "head")
        if getattr(counts, name)
    ]
    return f"{counts.total:,}: {', '.join(parts)}"


def _layout(plan: Plan, config: RunConfig) -> str:
    layout = config.layout
    sequence = " with sequence parallel" if layout.sequence_parallel else ""
    context = f" x cp {layout.cp}" if layout.cp > 1 else ""
    virtual = f" with vpp {layout.vpp}" if layout.vpp > 1 else ""
    is_sharded = layout.distributed_optimizer and plan.dp * layout.cp > 1
    return (
        f"{plan.world_size} processes = tp {layout.tp}{sequence}{context} x pp {layout.pp}{virtual}"
        f" x dp {plan.dp}{', optimizer sharded' if is_sharded else ''}"
    )


def _stages(plan: Plan) -> str:
    """Write the cut, each stage's share by process, and how long processes wait."""
    if len(plan.stages) == 1:
        return plan.layout
    shares = " | ".join(
        "+".join(f"{plan.stages[index].flops_share:.0%}" for index in process.stages)
        for process in plan.processes
    )
    by = " by process" if len(plan.stages) > len(plan.processes) else ""
    return (
        f"{plan.layout}, FLOPs{by} {shares}, busiest {plan.imbalance:.2f} x the mean, bubble "
        f"{plan.bubble:.1%} if all were equal, {plan.idle:.1%} idle as they are"
    )


def _schedule(config: RunConfig) -> str:
    optimizer = config.optimizer
    end = optimizer.decay_steps or config.train.steps
    return (
        f"lr {optimizer.lr:g} after {optimizer.warmup_steps:,} steps of {optimizer.warmup} "
        f"warm-up, cosine to {optimizer.lr * optimizer.min_lr_ratio:g} at step {end:,}"
    )


def _precision(config: RunConfig) -> str:
    if config.kernels.fp8 == "none":
        return config.train.precision
    return (
        f"{config.train.precision}; products of the decoders' layers in FP8, {config.kernels.fp8} "
        "scaling; MFU counts against the bf16 peak"
    )


def _memory(plan: Plan, config: RunConfig) -> str:
    index, memory = plan.fullest_process, config.memory
    estimate = plan.processes[index].memory
    where = f" on pipeline rank {index}" if len(plan.processes) > 1 else ""
    saved = _RECOMPUTED[memory.recompute]
    if memory.token_slices > 1:
        saved += f"; token decoder in {memory.token_slices} slices"
    return (
        f"about {estimate.total / GIB:.2f} GiB per process{where}: {_memory_parts(estimate)}{saved}"
    )


def _memory_parts(estimate: MemoryEstimate) -> str:
    parts = {
        "weights": estimate.weights + estimate.main_weights + estimate.fp8_weights,
        "gradients": estimate.gradients,
        "optimizer": estimate.optimizer,
        "activations": estimate.activations,
        "logits": estimate.logits,
    }
    return ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items())
