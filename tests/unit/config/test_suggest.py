# SPDX-License-Identifier: Apache-2.0
"""Nearest layouts that work: they do work, they are the nearest, and they come at once."""

import math
import re
import time
from itertools import combinations, product

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bt_megatron.config.rules import LAYOUT, check
from bt_megatron.config.suggest import change, nearest_layouts, suggestion_lines
from bt_megatron.errors import ConfigError

VANILLA = {
    "model": {
        "architecture": "vanilla",
        "vocab_size": 512,
        "decoder": {"num_layers": 5, "hidden_size": 64, "num_attention_heads": 4},
    },
    "data.random_left_padding": False,
    "data.pad_to_block_boundary": False,
}


def nearest(config, world_size):
    return [dict(each.changes) for each in nearest_layouts(config, world_size, LAYOUT)]


def works(config, world_size):
    return not any(rule(config, world_size) for rule in LAYOUT)


@pytest.mark.parametrize(
    ("changes", "world_size", "expected"),
    [
        ({"layout.tp": 3}, 8, [{"layout.tp": 4}, {"layout.tp": 2}, {"layout.tp": 1}]),
        (
            {"layout.cp": 3, "batch.global_batch_size": 2, "batch.micro_batch_size": 1},
            8,
            [{"layout.cp": 4}, {"layout.cp": 8}],
        ),
        (
            {"layout.tp": 3},
            6,
            [
                {"layout.tp": 2, "layout.pp": 3},
                {"layout.tp": 1, "layout.pp": 3},
                {"layout.tp": 1, "layout.pp": 6},
            ],
        ),
        ({"layout.pp_cut": "Eb|ttL"}, 1, [{"layout.pp_cut": "auto"}]),
        (
            {"layout.pp": 2, "layout.pp_cut": "E|bb|tt|L"},
            2,
            [{"layout.vpp": 2}, {"layout.pp_cut": "auto"}],
        ),
        ({"layout.sequence_parallel": True}, 1, [{"layout.sequence_parallel": False}]),
        (
            {"layout.sequence_parallel": True},
            2,
            [{"layout.sequence_parallel": False}, {"layout.tp": 2}],
        ),
        (
            {"layout.overlap_param_gather": True},
            1,
            [{"layout.overlap_grad_reduce": True}, {"layout.overlap_param_gather": False}],
        ),
        ({"memory.token_slices": 3}, 1, [{"memory.token_slices": 4}]),
        ({**VANILLA, "memory.token_slices": 3}, 1, [{"memory.token_slices": 1}]),
        (
            {"layout.vpp": 2, "batch.global_batch_size": 8},
            4,
            [{"layout.vpp": 1}, {"layout.pp": 2}],
        ),
        (
            {"layout.vpp": 2, "layout.pp": 2, "batch.global_batch_size": 6},
            2,
            [{"batch.micro_batch_size": 3}, {"batch.micro_batch_size": 1}, {"layout.vpp": 1}],
        ),
    ],
)
def test_the_nearest_come_first(make_run, changes, world_size, expected):
    assert nearest(make_run(changes), world_size) == expected


def test_a_layout_that_works_needs_no_change(make_run):
    assert nearest(make_run({"layout.tp": 2}), 8) == [{}]


sizes = st.sampled_from([1, 1, 1, 2, 3, 4, 6])
drawn_changes = st.fixed_dictionaries(
    {
        "layout.tp": sizes,
        "layout.cp": sizes,
        "layout.pp": sizes,
        "layout.vpp": sizes,
        "layout.sequence_parallel": st.booleans(),
        "layout.pp_cut": st.sampled_from(["auto", "auto", "Ebb|ttL", "E|bb|tt|L", "Ebb"]),
        "layout.distributed_optimizer": st.booleans(),
        "layout.overlap_grad_reduce": st.booleans(),
        "layout.overlap_param_gather": st.booleans(),
        "memory.token_slices": sizes,
        "batch.micro_batch_size": sizes,
        "batch.global_batch_size": st.sampled_from([1, 2, 6, 16, 48]),
        "data.seq_length": st.sampled_from([24, 60, 64, 96]),
    }
)
worlds = st.sampled_from([1, 2, 3, 4, 6, 7, 8, 12, 16, 24])


def suggested(message, world_size):
    """Yield what a message tells to type, with the number of processes it is meant for."""
    size = world_size
    for line in message.splitlines():
        if line.startswith("with another global batch"):
            size = world_size
        elif found := re.fullmatch(r"with (\d+) process(es)?:", line):
            size = int(found[1])
        elif line.startswith("  --set "):
            typed = re.findall(r"--set ([\w.]+)=(\S+)", line)
            yield {key: yaml.safe_load(value) for key, value in typed}, size


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn_changes, worlds, st.sampled_from([{}, VANILLA]))
def test_what_is_suggested_is_not_refused(make_run, changes, world_size, model):
    try:
        check(make_run(model | changes), world_size=world_size)
    except ConfigError as error:
        found = list(suggested(str(error), world_size))
        assert found
        for values, size in found:
            check(make_run(model | changes | values), world_size=size)


ALTERNATIVES = {
    "layout.tp": (1, 2, 4),
    "layout.cp": (1, 2, 4),
    "layout.pp": (1, 2, 4),
    "layout.vpp": (1, 2, 3),
    "layout.sequence_parallel": (False,),
    "layout.pp_cut": ("auto",),
    "batch.micro_batch_size": (1, 2, 4, 8, 16),
    "memory.token_slices": (1, 2, 4, 8, 16),
}


@settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.fixed_dictionaries(
        {
            "layout.tp": st.sampled_from([1, 2, 3]),
            "layout.cp": st.sampled_from([1, 2, 3]),
            "layout.pp": st.sampled_from([1, 2, 3]),
            "layout.vpp": st.sampled_from([1, 2]),
            "layout.sequence_parallel": st.booleans(),
            "memory.token_slices": st.sampled_from([1, 2, 3]),
            "layout.pp_cut": st.sampled_from(["auto", "Ebb|ttL"]),
        }
    ),
)
def test_no_layout_with_fewer_changes_is_missed(make_run, changes):
    """Against trying every value of every one and every two keys, on 4 processes."""
    config = make_run(changes)
    if works(config, 4):
        return
    (found, *_) = nearest_layouts(config, 4, LAYOUT)
    for count in range(1, min(3, len(found.changes) + 1)):
        distances = []
        for keys in combinations(ALTERNATIVES, count):
            for values in product(*(ALTERNATIVES[key] for key in keys)):
                tried = dict(zip(keys, values, strict=True))
                if works(change(config, tried), 4):
                    distances.append(distance(config, tried))
        if count < len(found.changes):
            assert distances == []
        else:
            assert min(distances) == pytest.approx(distance(config, found.changes))


def distance(config, changes):
    total = 0.0
    for key, new in changes.items():
        section, name = key.split(".")
        old = getattr(getattr(config, section), name)
        total += 1.0 if isinstance(new, bool | str) else abs(math.log2(new / old))
    return total


def test_the_facts_are_those_of_the_layout(make_run):
    (first, second, *_) = nearest_layouts(make_run({"layout.pp": 3, "layout.tp": 2}), 8, LAYOUT)

    assert (first.typed, first.facts) == (
        "--set layout.pp=4",
        "(dp 1, 8 micro-batches, bubble 27%)",
    )
    assert (second.typed, second.facts) == (
        "--set layout.pp=2",
        "(dp 2, 4 micro-batches, bubble 20%)",
    )


def test_switches_are_typed_in_lower_case(make_run):
    (found,) = nearest_layouts(make_run({"layout.sequence_parallel": True}), 1, LAYOUT)

    assert found.typed == "--set layout.sequence_parallel=false"


@pytest.mark.parametrize(
    ("changes", "world_size", "expected"),
    [
        (
            {"batch.micro_batch_size": 1},
            67,
            [
                "with 64 processes:",
                "  --set layout.cp=4  (dp 16, 1 micro-batch, bubble 0%)",
                "with another global batch, which is another training:",
                "  --set batch.global_batch_size=67  (dp 67, 1 micro-batch, bubble 0%)",
            ],
        ),
        (
            {"batch.micro_batch_size": 1, "batch.global_batch_size": 32},
            17,
            [
                "with 16 processes:",
                "  without a change  (dp 16, 2 micro-batches, bubble 0%)",
                "with another global batch, which is another training:",
                "  --set batch.global_batch_size=17  (dp 17, 1 micro-batch, bubble 0%)",
                "  --set batch.global_batch_size=34  (dp 17, 2 micro-batches, bubble 0%)",
            ],
        ),
    ],
    ids=["another layout", "the same layout"],
)
def test_other_processes_and_batches_are_named_if_nothing_else_works(
    make_run, changes, world_size, expected
):
    first, *rest = suggestion_lines(make_run(changes), world_size, LAYOUT)

    assert first == f"no layout works with {world_size} processes and this batch. What works:"
    assert rest == expected


@pytest.mark.parametrize("world_size", [1023, 1024, 1021])
@pytest.mark.parametrize("name", ["vanilla", "block"])
def test_many_layers_and_processes_take_no_time(make_run, name, world_size):
    stack = {"num_layers": 48, "hidden_size": 64, "num_attention_heads": 64, "rotary_fraction": 0}
    model = {"vocab_size": 512, "block_length": 4, "embedder": {"hidden_size": 16}}
    model |= {"block_decoder": stack, "token_decoder": stack}
    if name == "vanilla":
        model = {"architecture": "vanilla", "vocab_size": 512, "decoder": stack}
    config = make_run(
        {
            "model": model,
            "data.seq_length": 8192,
            "batch.global_batch_size": 4096,
            "layout.tp": 3,
            "layout.pp": 16,
            "layout.vpp": 5,
            "layout.sequence_parallel": True,
            "layout.overlap_param_gather": True,
            "memory.token_slices": 7,
        }
    )
    times = []
    for _ in range(3):  # the machine may be busy: the fastest of three counts
        start = time.process_time()
        lines = suggestion_lines(config, world_size, LAYOUT)
        times.append(time.process_time() - start)

    assert any("--set" in line for line in lines)
    assert min(times) < 0.2
