# SPDX-License-Identifier: Apache-2.0
"""The plan of a run."""

import json

import pytest

from bt_megatron.config.plan import make_plan, plan_mapping
from bt_megatron.errors import ConfigError


@pytest.fixture
def cut_run(make_run):
    """A run on 8 processes: tp 2, pp 2, dp 2."""
    return make_run({"layout.tp": 2, "layout.pp": 2})


def test_sizes_follow_from_layout_and_batch(cut_run):
    plan = make_plan(cut_run, 8)

    assert (plan.world_size, plan.dp, plan.micro_batches) == (8, 2, 4)
    assert plan.tokens_per_step == 16 * 64
    assert plan.total_tokens == 100 * 16 * 64
    assert plan.bubble == 1 / 5
    assert plan.idle > plan.bubble
    assert plan.training_flops == 100 * 16 * plan.flops.training_per_sequence


@pytest.mark.parametrize(
    ("layout", "dp", "micro_batches"),
    [
        ({"cp": 2}, 4, 2),
        ({"cp": 2, "tp": 2}, 2, 4),
        ({"cp": 2, "tp": 2, "pp": 2}, 1, 8),
        ({"pp": 2, "vpp": 2}, 4, 2),
    ],
    ids=["cp", "cp tp", "cp tp pp", "vpp takes no processes"],
)
def test_the_replicas_are_what_the_layout_leaves(make_run, layout, dp, micro_batches):
    plan = make_plan(make_run({f"layout.{key}": size for key, size in layout.items()}), 8)

    assert (plan.dp, plan.micro_batches) == (dp, micro_batches)


def test_stages_share_out_the_model(cut_run):
    plan = make_plan(cut_run, 8)

    assert plan.layout == "|".join(stage.slice.letters for stage in plan.stages)
    assert sum(stage.flops_share for stage in plan.stages) == pytest.approx(1)
    assert sum(stage.parameters for stage in plan.stages) == plan.parameters.total
    totals = [process.memory.total for process in plan.processes]
    assert totals[plan.fullest_process] == max(totals)


def test_a_process_has_its_virtual_stages(make_run):
    plan = make_plan(make_run({"layout.pp": 2, "layout.vpp": 2}), 2)
    first, second = plan.processes

    assert (first.stages, second.stages) == ((0, 2), (1, 3))
    assert first.parameters == plan.stages[0].parameters + plan.stages[2].parameters
    assert first.parameters + second.parameters == plan.parameters.total
    assert first.flops_share + second.flops_share == pytest.approx(1)
    assert plan.imbalance == 2 * max(first.flops_share, second.flops_share)
    assert plan.bubble == 1 / (8 * 2 + 1)


def test_one_process_is_balanced_and_never_waits(make_run):
    plan = make_plan(make_run(), 1)

    assert (plan.imbalance, plan.bubble, plan.idle) == (1, 0, pytest.approx(0))


def test_a_broken_configuration_has_no_plan(make_run):
    with pytest.raises(ConfigError, match="breaks these rules"):
        make_plan(make_run({"data.seq_length": 66}), 1)


def test_a_plan_is_json_and_names_its_formulas(cut_run):
    plan = make_plan(cut_run, 8)
    mapping = json.loads(json.dumps(plan_mapping(plan)))

    assert mapping["formulas"] == {"flops": "bt-matmul-v1", "memory": "bt-memory-v4"}
    assert mapping["parameters"]["total"] == plan.parameters.total
    assert mapping["flops"]["training_per_token"] == plan.flops.training_per_token
    assert mapping["flops_causal"]["training_per_token"] < mapping["flops"]["training_per_token"]
    assert [stage["slice"]["letters"] for stage in mapping["stages"]] == plan.layout.split("|")
    assert mapping["processes"][0]["memory"]["total"] == plan.processes[0].memory.total
    assert mapping["processes"][1]["stages"] == [1]
    assert (mapping["imbalance"], mapping["idle"]) == (plan.imbalance, plan.idle)
    assert mapping["training_flops"] == plan.training_flops
