# SPDX-License-Identifier: Apache-2.0
"""Megatron's schedules tell every layer of every stage which micro-batch is a step's first.

Layers with products in FP8 refresh their copies of the weights then (te_specs.py), and at no
other time; whether they do, with real copies, is a matter for a GPU.
"""

import copy

import pytest
from torch import nn

from bt_megatron.checkpoint.state import unwrap
from bt_megatron.config.schema import LayoutConfig, MemoryConfig, RunConfig
from tests.dist.test_layouts import LAYOUTS, MODELS, config_of
from tests.ranks import run_ranks
from tools.layout_run import own_batches, take_steps, training_step

STEPS = 2
LINEAR = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")


def flags(config: RunConfig) -> list[tuple[int, list[bool]]]:
    """Return what each linear layer of the decoders is told in the passes of training.

    A layer that is told is as a Transformer Engine layer is: it has the flag and lowers it.
    """
    told: list[tuple[int, list[bool]]] = []

    def listen(layer: nn.Module) -> None:
        seen: list[bool] = []
        layer.is_first_microbatch = True  # as such layers are built

        def read(module: nn.Module, _inputs: object) -> None:
            seen.append(module.is_first_microbatch)
            module.is_first_microbatch = False

        layer.register_forward_pre_hook(read)
        told.append((micro_batches, seen))

    with training_step(config) as step:
        micro_batches = len(own_batches(config, step=0))
        for chunk in step.chunks:
            chunk.config = copy.copy(chunk.config)  # that of the wrapper; the layers are plain
            chunk.config.fp8 = "hybrid"
            for name, layer in unwrap(chunk).named_modules():
                if name.endswith(LINEAR) and not name.startswith("embedder"):
                    listen(layer)
        take_steps(step, config, range(STEPS))
        step.evaluate(own_batches(config, step=STEPS))
        take_steps(step, config, [STEPS])
    return told


@pytest.mark.parametrize(
    ("model", "layout", "memory"),
    [
        ("main", "one", {}),
        ("main", "one", {"recompute": "full"}),
        ("main", "one", {"token_slices": 4}),
        ("main", "pp2", {}),
        ("main", "pp2-vpp2", {}),
        ("vanilla", "pp2-vpp2", {}),
    ],
)
def test_the_first_pass_of_a_step_and_no_other_is_told_so(
    model: str, layout: str, memory: dict[str, object]
) -> None:
    world_size, changes = {"one": (1, {}), **LAYOUTS}[layout]
    config = config_of(MODELS[model], layout=LayoutConfig(**changes), memory=MemoryConfig(**memory))
    told = [each for rank in run_ranks(flags, world_size, config) for each in rank]
    assert len(told) == 4 * len(LINEAR), "four layers in all"
    for micro_batches, seen in told:
        assert micro_batches == 12
        assert sum(seen) == STEPS + 2, "once a step, and once for the evaluation"
        firsts = [number for number, is_first in enumerate(seen) if is_first]
        assert firsts[0] == 0
        if not memory:  # else passes are repeated, how often depends on the part
            assert firsts == [number * micro_batches for number in range(STEPS + 2)]
            assert len(seen) == (STEPS + 2) * micro_batches
