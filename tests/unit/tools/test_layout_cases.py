# SPDX-License-Identifier: Apache-2.0
import math

import pytest

from bt_megatron.config.plan import make_plan
from bt_megatron.config.schema import LayoutConfig
from bt_megatron.parallel.layout import parse_stages
from tools.layout_cases import (
    block_model,
    cut_inside,
    layout_cases,
    layout_name,
    small_model,
    small_run,
    without_dropout,
)

TWO = [
    *("dp2", "dp2-overlap", "dp2-plain-optimizer", "tp2-sp", "tp2"),
    *("cp2", "cp2-overlap", "cp2-plain-optimizer"),
    *("pp2", "pp2-vpp2", "pp2-cut-in-block-decoder"),
]
PRODUCTS_OF_EIGHT = {
    *("dp8", "tp8-sp", "cp8", "pp8", "tp4-sp-dp2", "tp2-sp-cp2-dp2", "tp2-sp-cp2-pp2-vpp2"),
    *("pp4-vpp2-dp2-overlap", "tp2-sp-pp2-vpp2-dp2-overlap", "cp4-pp2", "cp2-pp4-vpp2"),
}


def cases_of(processes, architecture="block"):
    run = small_run(small_model(architecture, processes=processes), [processes], steps=2)
    return layout_cases(run, processes)


def accepted(cases):
    return [case for case in cases if not case.refusal]


def test_layouts_of_two_processes():
    assert [case.name for case in cases_of(2)] == TWO
    assert all(not case.refusal for case in cases_of(2))


def test_one_process_has_one_layout():
    assert [case.name for case in cases_of(1)] == ["one"]


def test_products_of_eight():
    names = {case.name for case in accepted(cases_of(8))}
    assert names >= PRODUCTS_OF_EIGHT


@pytest.mark.parametrize("architecture", ["block", "vanilla"])
@pytest.mark.parametrize("processes", [1, 2, 3, 4, 6, 8, 16])
def test_what_is_accepted_fits_and_is_there_once(processes, architecture):
    cases = cases_of(processes, architecture)
    assert len({case.name for case in cases}) == len(cases)
    layouts = [(case.config.layout, case.cut) for case in accepted(cases)]
    assert len(set(layouts)) == len(layouts) >= 1
    for case in accepted(cases):
        plan = make_plan(case.config, processes)
        assert case.cut == (plan.layout if case.config.layout.pp > 1 else "")


@pytest.mark.parametrize("processes", [2, 4, 6, 8])
def test_every_product_is_tried(processes):
    sizes = {
        (case.config.layout.tp, case.config.layout.cp, case.config.layout.pp)
        for case in cases_of(processes)
    }
    numbers = range(1, processes + 1)
    assert sizes == {
        (tp, cp, pp)
        for tp in numbers
        for cp in numbers
        for pp in numbers
        if processes % (tp * cp * pp) == 0
    }


def test_what_the_rules_refuse_has_their_reason():
    refused = {case.name: case.refusal for case in cases_of(3) if case.refusal}
    assert "num_attention_heads (4)" in refused["tp3-sp"]


def test_sequence_parallel_wherever_there_is_tensor_parallel_but_once():
    layouts = {case.name: case.config.layout for case in cases_of(4)}
    assert [name for name, one in layouts.items() if one.tp > 1 and not one.sequence_parallel] == [
        "tp4"
    ]


@pytest.mark.parametrize(
    ("layout", "processes", "name"),
    [
        (LayoutConfig(), 1, "one"),
        (LayoutConfig(), 4, "dp4"),
        (LayoutConfig(tp=2, sequence_parallel=True, pp=2, vpp=3), 8, "tp2-sp-pp2-vpp3-dp2"),
        (LayoutConfig(cp=8), 8, "cp8"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_names_are_the_sizes_above_one(layout, processes, name):
    assert layout_name(layout, processes) == name


@pytest.mark.parametrize(
    ("letter", "pp", "expected"),
    [
        ("b", 2, "Eb|bbtttL"),
        ("t", 3, "Ebbbt|t|tL"),
        ("b", 4, ""),
    ],
    ids=["block decoder", "three stages", "too few layers"],
)
def test_cuts_inside_of_a_decoder(letter, pp, expected):
    found = cut_inside("EbbbtttL", letter, pp)
    assert found == expected
    assert not found or len(parse_stages(found)) == pp


@pytest.mark.parametrize("processes", [[2, 4], [3], [2, 3, 8]], ids=str)
def test_all_sizes_share_one_run(processes):
    run = small_run(small_model("block", processes=max(processes)), processes, steps=2)
    assert run.batch.global_batch_size % math.lcm(*processes) == 0
    for number in processes:
        assert accepted(layout_cases(run, number))


def test_dropout_is_off():
    config = block_model(width=64, heads=4)
    assert config.embedder.dropout > 0
    assert without_dropout(config).embedder.dropout == 0
