# SPDX-License-Identifier: Apache-2.0
"""The table and the JSON of `plan --comm`."""

import json

from bt_megatron.config.comm import step_communication
from bt_megatron.config.comm_table import (
    CONTEXT_PARALLEL_NOTE,
    FP8_NOTE,
    communication_lines,
    communication_mapping,
)

REPLICAS = """
one optimizer step of each process:
operation       group    what for                      when         calls  bytes per call      total
reduce_scatter  dp_cp 2  gradients                     gradients        1       1,128,960  1.077 MiB
all_reduce      world 2  loss, targets, stop requests  end of step      1              24       24 B
all_reduce      world 2  gradient norm                 optimizer        1               4        4 B
all_gather      dp_cp 2  updated weights               optimizer        1         564,480  551.2 KiB
total                                                                   4                  1.615 MiB
over dp_cp 2: 1.615 MiB; around a ring 826.9 KiB leave the process
over world 2: 28 B; around a ring 28 B leave the process"""
"""282,240 parameters, a multiple of 128, in float32 and in bf16."""


def table(config, world_size):
    return communication_lines(step_communication(config, world_size), config)


def test_a_table_of_replicas(make_run):
    assert "\n".join(table(make_run(), 2)) == REPLICAS


def test_one_process_has_no_table(make_run):
    assert table(make_run(), 1) == ["", "one optimizer step of each process:", "nothing is sent"]


def test_pipeline_ranks_have_tables_of_their_own(make_run):
    lines = table(make_run({"layout.pp": 2, "layout.pp_cut": "Ebb|ttL"}), 2)
    text = "\n".join(lines)
    assert text.count("one optimizer step of each process of pipeline rank") == 2
    assert any(line.startswith("send to 1") for line in lines)
    assert any(line.startswith("recv from 0") for line in lines)


def test_layers_of_transformer_engine_are_said_to_differ_where_they_do(make_run):
    assert table(make_run({"layout.cp": 2}), 2)[-2:] == list(CONTEXT_PARALLEL_NOTE)
    assert CONTEXT_PARALLEL_NOTE[0] not in table(make_run(), 2)
    ours = {"layout.cp": 2, "kernels.layers": "torch"}
    assert CONTEXT_PARALLEL_NOTE[0] not in table(make_run(ours), 2)


def test_json_has_calls_and_sums(make_run):
    config = make_run({"layout.pp": 2, "layout.tp": 2})
    processes = step_communication(config, 4)
    first, last = json.loads(json.dumps(communication_mapping(processes)))
    assert (first["pipeline_rank"], last["pipeline_rank"]) == (0, 1)
    assert len(first["transfers"]) == len(processes[0])
    over_tp = [t for t in first["transfers"] if t["group"] == "tp"]
    assert first["groups"]["tp 2"]["total"] == sum(t["calls"] * t["bytes"] for t in over_tp)
    assert first["groups"]["tp 2"]["sent"] == sum(t["sent"] for t in over_tp)


def test_figures_are_said_to_be_those_of_bf16(make_run):
    assert table(make_run({"kernels.fp8": "current"}), 1)[-2:] == list(FP8_NOTE)
    assert FP8_NOTE[0] not in table(make_run(), 1)
