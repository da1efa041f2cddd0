# SPDX-License-Identifier: Apache-2.0
"""The list of `plan --comm` is what a step sends: every call, over which group, how many bytes."""

from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state

from bt_megatron.config import stage_weights
from bt_megatron.config.comm import Transfer, step_communication
from bt_megatron.config.plan import make_plan
from bt_megatron.config.schema import (
    BatchConfig,
    LayoutConfig,
    MemoryConfig,
    OptimizerConfig,
    RunConfig,
)
from bt_megatron.config.stage_weights import Weight
from bt_megatron.config.stages import resolve_stages
from bt_megatron.parallel.groups import build_groups
from bt_megatron.training import chunk
from tests.dist.test_layouts import LAYOUTS, MEMORY, MODELS, OTHER_MODELS, config_of
from tests.ranks import run_ranks
from tests.recorded_calls import Operation, recorded_calls
from tools.layout_run import take_steps, training_step

SEQUENCES = {"dp3": 12}


def second_step(config: RunConfig) -> tuple[int, Counter[Operation]]:
    """Return this process's pipeline rank and what it did in the second step.

    In the first one Megatron asks for things that do not change, and finds out when
    gradients are ready.
    """
    with training_step(config) as step:
        take_steps(step, config, [0])
        with recorded_calls() as recording:
            take_steps(step, config, [1])
        return parallel_state.get_pipeline_model_parallel_rank(), recording.operations


def planned(transfers: tuple[Transfer, ...]) -> Counter[Operation]:
    operations: Counter[Operation] = Counter()
    for transfer in transfers:
        is_message = transfer.operation in ("send", "recv")
        key = Operation(
            transfer.operation,
            transfer.group,
            transfer.group_size,
            transfer.peer,
            transfer.bytes,
            transfer.phase == "backward" and not is_message,
        )
        operations[key] += transfer.calls
    return operations


def assert_as_planned(config: RunConfig, world_size: int) -> None:
    make_plan(config, world_size)
    plans = [planned(transfers) for transfers in step_communication(config, world_size)]
    for rank, (pp_rank, made) in enumerate(run_ranks(second_step, world_size, config)):
        missing, unplanned = plans[pp_rank] - made, made - plans[pp_rank]
        report = "\n".join(
            f"{title}: {count} x {operation}"
            for title, left in (("not made", missing), ("not in the plan", unplanned))
            for operation, count in left.items()
        )
        assert plans[pp_rank] == made, f"rank {rank}, pipeline rank {pp_rank}:\n{report}"


def layout_config(model: str, layout: str, **changes: object) -> tuple[RunConfig, int]:
    world_size, cut = LAYOUTS[layout]
    if model != "main":
        cut = {key: value for key, value in cut.items() if key != "pp_cut"}
    config = config_of(MODELS[model], layout=LayoutConfig(**cut))
    batch = BatchConfig(global_batch_size=SEQUENCES.get(layout, 8), micro_batch_size=2)
    return replace(config, batch=batch, **changes), world_size


def held_weights(config: RunConfig) -> tuple[int, list[Weight]]:
    """Return this process's pipeline rank and its weights, in Megatron's order."""
    with training_step(config) as step:
        weights = [
            Weight(parameter.numel(), getattr(parameter, "sequence_parallel", False))
            for held in step.chunks
            for parameter in held.parameters()
        ]
        return parallel_state.get_pipeline_model_parallel_rank(), weights


def bypass_python() -> None:
    build_groups(LayoutConfig(), seed=1)
    with recorded_calls():
        group = dist.group.WORLD.group_name
        sent = torch.ops._c10d_functional.all_reduce(torch.ones(2), "sum", group)
        torch.ops._c10d_functional.wait_tensor(sent)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_call_of_a_step_is_in_the_plan(layout: str) -> None:
    assert_as_planned(*layout_config("main", layout))


@pytest.mark.parametrize(
    ("model", "layout"), [(model, name) for model, names in OTHER_MODELS for name in names]
)
def test_other_models_too(model: str, layout: str) -> None:
    assert_as_planned(*layout_config(model, layout))


@pytest.mark.parametrize(
    ("model", "layout", "memory"),
    [
        *(("main", layout, memory) for layout, memory in MEMORY.values()),
        ("main", "tp2", {"recompute": "full"}),
        ("main", "tp2", {"token_slices": 2}),
        ("main", "tp2-sp-cp2", {"recompute": "full"}),
        ("vanilla", "tp2-sp", {"recompute": "full"}),
        ("roberta-cls-t5", "tp2", {"token_slices": 4}),
        ("roberta-prefix-b8-p1", "tp2-sp", {"recompute": "full"}),
    ],
)
def test_what_is_computed_again_is_sent_again(
    model: str, layout: str, memory: dict[str, object]
) -> None:
    assert_as_planned(*layout_config(model, layout, memory=MemoryConfig(**memory)))


@pytest.mark.parametrize("layout", ["dp2", "tp2-sp-dp2-overlap", "pp2-vpp2", "cp2"])
@pytest.mark.parametrize("model", ["main", "roberta-cls-t5"])
def test_bf16_halves_all_but_gradients_and_statistics(model: str, layout: str) -> None:
    config, world_size = layout_config(model, layout)
    config = replace(config, train=replace(config.train, precision="bf16"))
    assert_as_planned(config, world_size)


@pytest.mark.parametrize("layout", ["dp2-overlap", "dp2-plain-overlap", "pp2-vpp2-dp2-overlap"])
def test_buckets_are_cut_as_megatron_cuts_them(
    layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, world_size = layout_config("main", layout)
    original = chunk.DistributedDataParallelConfig
    monkeypatch.setattr(
        chunk, "DistributedDataParallelConfig", partial(original, bucket_size=20_000)
    )
    whole = step_communication(config, world_size)
    monkeypatch.setattr(stage_weights, "MIN_BUCKET", 20_000)
    monkeypatch.setattr(stage_weights, "BUCKET_PER_REPLICA", 0)
    assert len(step_communication(config, world_size)[0]) > len(whole[0])
    assert_as_planned(config, world_size)


def test_the_gradient_norm_is_summed_without_clipping_too() -> None:
    config, world_size = layout_config("main", "dp2", optimizer=OptimizerConfig(clip_grad=0.0, warmup_steps=0))
    assert_as_planned(config, world_size)


@pytest.mark.parametrize(
    ("model", "layout"),
    [
        *(("main", layout) for layout in ("dp2", "tp2-sp", "pp3-embedder-alone", "pp2-vpp3")),
        *((model, "tp2-sp") for model in ("vanilla-llama", "roberta-cls-t5", "llama-layers")),
        *(("projection-summation-widths", layout) for layout in ("dp2", "tp2-sp")),
    ],
)
def test_the_weights_of_a_stage_are_in_megatrons_order(model: str, layout: str) -> None:
    config, world_size = layout_config(model, layout)
    stages = resolve_stages(config)
    for rank, weights in run_ranks(held_weights, world_size, config):
        own = stages[rank :: config.layout.pp]
        assert weights == [w for stage in own for w in stage_weights.stage_weights(config, stage)]


def test_the_recorder_notices_what_bypasses_it() -> None:
    with pytest.raises(AssertionError, match=r"assert counted == dict\(recording.calls\)"):
        run_ranks(bypass_python, 2)
