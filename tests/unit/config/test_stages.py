# SPDX-License-Identifier: Apache-2.0
"""Stages of a run: written, balanced, refused."""

import pytest

from bt_megatron.config.flops import element_flops
from bt_megatron.config.pipeline_schedule import idle_fraction
from bt_megatron.config.stages import require_stages, resolve_stages
from bt_megatron.errors import LayoutError
from bt_megatron.parallel.layout import format_stages, sum_by_stage


def test_auto_on_one_stage_holds_everything(make_run):
    (stage,) = resolve_stages(make_run())

    assert stage.letters == "EbbttL"


def test_auto_balances_by_flops(make_run):
    config = make_run(
        {
            "model.block_decoder.num_layers": 12,
            "model.token_decoder.num_layers": 12,
            "layout.pp": 4,
        }
    )
    costs = element_flops(config.model, seq_length=64)
    stages = resolve_stages(config)

    work = sum_by_stage(costs, stages)
    assert len(stages) == 4
    assert max(work) < sum(work) / 4 + max(costs)
    assert stages[0].token_layers > 0, "twelve block layers cost less than a quarter"


def test_a_written_layout_is_taken_as_it_is(make_run):
    config = make_run({"layout.pp": 3, "layout.pp_cut": "E|bbt|tL"})

    assert format_stages(resolve_stages(config)) == "E|bbt|tL"


def test_virtual_stages_are_stages_too(make_run):
    config = make_run({"layout.pp": 2, "layout.vpp": 3})

    assert len(resolve_stages(config)) == 6


def test_auto_spreads_virtual_stages_over_the_processes(make_run):
    changes = {"model.token_decoder.num_layers": 6, "layout.pp": 2, "layout.vpp": 2}
    config = make_run(changes)
    work = sum_by_stage(element_flops(config.model, seq_length=64), resolve_stages(config))

    assert format_stages(resolve_stages(config)) == "Ebbt|tt|tt|tL"
    assert idle_fraction(work, pp=2, micro_batches=8) < 0.25


@pytest.mark.parametrize("changes", [{"layout.pp": 6}, {"layout.pp": 3, "layout.vpp": 2}])
def test_checking_refuses_what_resolving_refuses(make_run, changes):
    require_stages(make_run(changes))
    short = make_run(changes | {"model.block_decoder.num_layers": 1})

    for refuse in (require_stages, resolve_stages):
        with pytest.raises(LayoutError, match="6 stages are more than"):
            refuse(short)


def test_auto_keeps_the_t5_decoder_in_the_last_virtual_stage(make_run):
    changes = {"model.token_decoder.strategy": "cross_attention", "layout.pp": 2, "layout.vpp": 2}

    assert format_stages(resolve_stages(make_run(changes))) == "E|b|b|ttL"


def test_auto_keeps_the_t5_decoder_whole(make_run):
    config = make_run({"model.token_decoder.strategy": "cross_attention", "layout.pp": 3})

    assert [stage.letters for stage in resolve_stages(config)][-1] == "ttL"


def test_a_layout_of_another_model_is_refused(make_run):
    with pytest.raises(LayoutError, match="it has 1 't' but the model has 2"):
        resolve_stages(make_run({"layout.pp_cut": "EbbtL"}))
