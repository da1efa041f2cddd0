# SPDX-License-Identifier: Apache-2.0
"""Which models are trained in which layouts, on one to eight GPUs, to see how speed grows.

Every case of a model has the global batch of the paper, so a replica accumulates fewer
micro-batches the more GPUs there are, and each step pays for its communication as in a real
run. Nothing here imports torch.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from bt_megatron.config.load import load_run
from bt_megatron.config.plan import Plan, make_plan
from bt_megatron.config.schema import LayoutConfig, RunConfig
from tools.layout_cases import block_model, layout_name

RUNS = Path(__file__).resolve().parents[1] / "configs" / "run"
SMALL, LARGE = "block-420m", "block-1.2b"
MICRO_BATCHES = {SMALL: 16, LARGE: 8}
"""Sequences: what a GPU of 80 GB can hold without recomputation."""
LONG_CP, LONG_BATCH = 8, 8
"""Processes that share a sequence of the long case, and sequences of its batch: of 131,072 tokens
where the paper has 512 of 2,048."""
TRIAL_STEPS, LONG_STEPS = 10, 2
SECONDS, TINY_SECONDS = 4.0, 0.2
ORDER = (1, 8, 4, 2)
"""The most GPUs first: if the time is up, what is left is the least new."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalingCase:
    """A model in a layout."""

    name: str
    """E.g. dp2/block-420m."""
    model: str
    config: RunConfig
    plan: Plan
    trial_batch: int
    """Sequences of a step of the trial: one micro-batch for each of eight replicas."""
    trial_steps: int
    seconds: float
    """How long steps are timed."""
    baseline: str | None
    """The case of one process on the same sequences; none: this is it, or one GPU cannot hold
    them."""


def scaling_cases(processes: int, *, is_tiny: bool) -> list[ScalingCase]:
    """Return the cases of 1, 2, 4 and 8 processes, up to a number of them, in their order.

    Args:
        processes: how many there are.
        is_tiny: small models in float32 in place of those of the paper.
    """
    runs = {model: _tiny_run(model) if is_tiny else _paper_run(model) for model in MICRO_BATCHES}
    seconds = TINY_SECONDS if is_tiny else SECONDS
    cases = []
    for size in ORDER:
        if size <= processes:
            cases += [
                _case(model, replace(runs[model], layout=layout), size, seconds=seconds)
                for model, layout in _layouts(size)
            ]
        if size == LONG_CP and size <= processes:
            long = _with_long_sequences(runs[LARGE])
            cases.append(_long_case(long, seconds=seconds))
    return cases


def _layouts(processes: int) -> Iterator[tuple[str, LayoutConfig]]:
    """Yield models and layouts."""
    yield SMALL, LayoutConfig()
    yield LARGE, LayoutConfig()
    if processes == 2:
        for model in (LARGE, SMALL):
            yield model, LayoutConfig(tp=2, sequence_parallel=True)
            yield model, LayoutConfig(pp=2)
    if processes == 8:
        yield LARGE, LayoutConfig(tp=2, sequence_parallel=True, pp=2)
        yield LARGE, LayoutConfig(pp=4, vpp=2)
        yield LARGE, LayoutConfig(tp=8, sequence_parallel=True)
        yield LARGE, LayoutConfig(pp=8)


def _case(model: str, run: RunConfig, processes: int, *, seconds: float) -> ScalingCase:
    config = _overlapped(run, processes)
    return ScalingCase(
        name=f"{layout_name(config.layout, processes)}/{model}",
        model=model,
        config=config,
        plan=make_plan(config, processes),
        trial_batch=8 * run.batch.micro_batch_size,
        trial_steps=TRIAL_STEPS,
        seconds=seconds,
        baseline=f"{layout_name(LayoutConfig(), 1)}/{model}" if processes > 1 else None,
    )


def _long_case(run: RunConfig, *, seconds: float) -> ScalingCase:
    config = _overlapped(replace(run, layout=LayoutConfig(cp=LONG_CP)), LONG_CP)
    return ScalingCase(
        name=f"cp{LONG_CP}-{run.data.seq_length}-tokens/{LARGE}",
        model=LARGE,
        config=config,
        plan=make_plan(config, LONG_CP),
        trial_batch=run.batch.global_batch_size,
        trial_steps=LONG_STEPS,
        seconds=seconds,
        baseline=None,
    )


def _with_long_sequences(run: RunConfig) -> RunConfig:
    """Return a run whose sequences are as many times longer as fewer are in a batch."""
    batch, length = run.batch.global_batch_size, run.data.seq_length
    fewer = batch // LONG_BATCH
    return replace(
        run,
        data=replace(run.data, seq_length=fewer * length),
        batch=replace(run.batch, global_batch_size=LONG_BATCH, micro_batch_size=1),
    )


def _overlapped(run: RunConfig, processes: int) -> RunConfig:
    """Return the run with what is shared behind the computation, if anything is shared."""
    layout = run.layout
    if processes == layout.tp * layout.pp:
        return run
    return replace(run, layout=replace(layout, overlap_grad_reduce=True, overlap_param_gather=True))


def _paper_run(model: str) -> RunConfig:
    settings = [f"batch.micro_batch_size={MICRO_BATCHES[model]}", "train.precision=bf16"]
    return load_run([RUNS / f"{model}.yaml"], settings).config


def _tiny_run(model: str) -> RunConfig:
    """Return the run of a model of eight heads and eight pieces, which all layouts can cut."""
    run = load_run([RUNS / f"{model}.yaml"], ["train.precision=fp32"]).config
    return replace(
        run,
        model=block_model(width=64 if model == SMALL else 128, heads=8),
        data=replace(run.data, seq_length=64),
        batch=replace(run.batch, global_batch_size=16, micro_batch_size=1),
    )
