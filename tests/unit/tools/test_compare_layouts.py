# SPDX-License-Identifier: Apache-2.0
"""The command without its processes; tests/e2e/test_layout_tools.py runs it whole."""

import pytest

from tests.unit.tools.test_layout_table import result
from tools import compare_layouts
from tools.compare_layouts import bf16_itself, choose_cases, describe_model, main
from tools.layout_cases import small_model, small_run
from tools.layout_table import rows_of

RUN = small_run(small_model("block", processes=4), [2, 4], steps=1)


def test_all_layouts_of_all_sizes_are_chosen():
    names = [case.name for case in choose_cases(RUN, [2, 4], [])]
    assert {"dp2", "tp2-sp", "dp4", "tp2-sp-dp2", "pp4-vpp2"} <= set(names)
    assert len(names) == len(set(names)) == 11 + 27


def test_named_layouts_are_chosen():
    assert [case.name for case in choose_cases(RUN, [2], ["cp2", "dp2"])] == ["dp2", "cp2"]


def test_what_the_rules_refuse_is_said(capsys):
    run = small_run(small_model("block", processes=3), [3], steps=1)
    assert "tp3-sp" not in [case.name for case in choose_cases(run, [3], [])]
    assert "left out: tp3-sp: layout.tp (3) does not divide" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--layouts", "dp3"], "--layouts dp3: 2 processes have no such layout. Use some of dp2"),
        (["--layouts", "tp3-sp", "--processes", "3"], "the rules refuse all of these"),
        (["--model", "no.yaml"], "no.yaml"),
    ],
    ids=["layout", "refused", "model"],
)
def test_wrong_arguments_are_told(arguments, text, capsys):
    assert main(["--cpu", "--processes", "2", *arguments]) == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0", "2,x", "", "-1"])
def test_processes_are_numbers(text, capsys):
    with pytest.raises(SystemExit):
        main(["--processes", text])
    assert "is not a list of numbers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("results", "code"),
    [
        ([result(), result("dp2")], 0),
        ([result(), result("dp2", gradient=1.0)], 1),
        ([result(error="rank 0: OSError"), result("dp2")], 1),
    ],
    ids=["good", "over the limit", "failed"],
)
def test_exit_code(results, code, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(compare_layouts, "compare", lambda _comparison: results)
    file = tmp_path / "layouts.json"
    assert main(["--cpu", "--processes", "2", "--benchmark", str(file)]) == code
    assert file.exists()
    assert capsys.readouterr().out.splitlines()[1].endswith("11 layouts of 2 CPU processes")


@pytest.mark.parametrize(("loss", "is_good"), [(3e-4, True), (0.017, False)], ids=["same", "lost"])
def test_bf16_itself_is_judged_by_float32(loss, is_good):
    own = {**result().difference, "loss_nats": loss}
    itself = bf16_itself(RUN, layers="torch", own=own)
    assert itself.is_good is is_good
    (row, _) = rows_of([itself], model="block", detail={})
    assert (row.case, row.value, row.unit) == ("layout/one-against-fp32/bf16", loss, "nats")


def test_ctrl_c_ends_it_with_its_own_code(monkeypatch, capsys):
    def interrupt(_comparison):
        raise KeyboardInterrupt

    monkeypatch.setattr(compare_layouts, "compare", interrupt)
    assert main(["--cpu", "--processes", "2"]) == 130
    assert "interrupted" in capsys.readouterr().out


def test_a_model_is_described_by_its_size():
    assert describe_model(RUN.model, "block") == "block, 5,459,264 parameters"
