# SPDX-License-Identifier: Apache-2.0
"""Sweeps: every file of configs/sweep, what is refused, what is complete."""

from pathlib import Path

import orjson
import pytest

from bt_megatron.config.params import count_parameters
from bt_megatron.config.plan import make_plan
from bt_megatron.errors import ConfigError
from slurm.sweep import load_sweep

ROOT = Path(__file__).parents[3]
FILES = sorted(
    path for path in (ROOT / "configs/sweep").rglob("*.yaml") if path.name != "base.yaml"
)
FULL = [path for path in FILES if path.parent.name == "sweep"]
GOOD = """\
name: width
title: Width
axis: width
run: [configs/run/demo.yaml]
set:
  train: {steps: 10}
  optimizer: {warmup_steps: 0}
cases:
  a:
    model: {init_std: 0.02}
  b:
    model: {init_std: 0.01}
"""


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(GOOD)
    return path


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_case_of_every_sweep_can_be_trained(path):
    sweep = load_sweep(path)

    assert len({case.config.name for case in sweep.cases}) == len(sweep.cases) >= 3
    for case in sweep.cases:
        assert make_plan(case.config, 1)
        assert case.config.log.mlflow.parent == sweep.name


@pytest.mark.parametrize("path", FULL, ids=lambda path: path.stem)
def test_sweeps_change_what_they_say_and_not_the_size(path):
    """The layers stay 85M parameters; T5 layers have cross-attention on top."""
    cases = [case for case in load_sweep(path).cases if case.name != "cross-attention"]
    sizes = {count_parameters(case.config.model).non_embedding for case in cases}
    assert sizes == {85_057_536}


def test_the_ablations_are_those_of_the_paper():
    lengths = load_sweep("configs/sweep/block_length.yaml").cases
    assert [case.config.model.block_length for case in lengths] == [1, 2, 4, 8, 16, 32]
    allocations = load_sweep("configs/sweep/allocation.yaml").cases
    layers = [
        (case.config.model.block_decoder.num_layers, case.config.model.token_decoder.num_layers)
        for case in allocations
    ]
    assert layers == [(10, 2), (8, 4), (6, 6), (4, 8), (2, 10)]


def test_settings_are_common_then_own_then_given(file):
    sweep = load_sweep(file, ["train.steps=20", "runs_dir=elsewhere"])
    a, b = sweep.cases

    assert (a.config.train.steps, a.config.optimizer.warmup_steps) == (20, 0)
    assert (a.config.model.init_std, b.config.model.init_std) == (0.02, 0.01)
    assert (a.config.run_dir, b.config.run_dir) == ("elsewhere/width-a", "elsewhere/width-b")
    assert sweep.folder == Path("elsewhere/width")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("axis: width\n", "", "axis is missing"),
        ("axis:", "axes:", "axes: unknown key. Did you mean 'axis'"),
        ("name: width", "name: a/b", "'a/b' is no name"),
        ("  b:\n", "  b c:\n", "'b c' is no name"),
        ("init_std: 0.01", "init_sdt: 0.01", "init_sdt: unknown key"),
        ("run: [configs/run/demo.yaml]", "run: [1]", "1 is no file"),
        ("run: [configs/run/demo.yaml]", "run: [none.yaml]", "none.yaml: No such file"),
        ("  train: {steps: 10}\n", "  log: {mlflow: null}\n", "log.mlflow is null"),
        ("  train: {steps: 10}\n", "  train: {steps: ten}\n", "train.steps: got 'ten'"),
        (GOOD[GOOD.index("cases:") :], "", "cases is missing or empty"),
        (GOOD[GOOD.index("cases:") :], "cases: 3\n", "cases: got 3, expected 'key: value' lines"),
    ],
)
def test_what_cannot_be_meant_is_refused(file, old, new, message):
    assert old in GOOD
    file.write_text(GOOD.replace(old, new))
    with pytest.raises(ConfigError) as error:
        load_sweep(file)
    assert message in str(error.value)


def test_a_run_is_complete_when_its_last_step_is_taken(file, tmp_path):
    def events(case, *values):
        case.folder.path.mkdir(parents=True, exist_ok=True)
        case.folder.events.write_bytes(b"".join(orjson.dumps(v) + b"\n" for v in values))

    sweep = load_sweep(file, [f"runs_dir={tmp_path}"])
    a, b = sweep.cases
    assert sweep.missing == [a, b]
    events(a, {"event": "started", "step": 0}, {"event": "stopped", "step": 10})
    events(b, {"event": "started", "step": 0}, {"event": "stopped", "step": 5})
    assert sweep.missing == [b]
    assert load_sweep(file, [f"runs_dir={tmp_path}", "train.steps=11"]).missing
