# SPDX-License-Identifier: Apache-2.0
"""The comparison of precisions: what is trained, what is read of it, what is written."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from bt_megatron.config.load import load_run, to_mapping
from bt_megatron.config.schema import EvaluationConfig, RunConfig, TrainConfig
from bt_megatron.errors import ConfigError, TrainingError
from tests.tiny_run import tiny_run
from tools.compare_precision import (
    REFERENCE,
    VARIANTS,
    Outcome,
    benchmark_rows,
    main,
    read_outcome,
    settings_of,
)

STEPS = 6


@pytest.fixture
def config(tiny_data: Path, tmp_path: Path) -> RunConfig:
    config = tiny_run(tiny_data, tmp_path, train=TrainConfig(steps=STEPS, precision="bf16"))
    return replace(config, evaluation=EvaluationConfig(interval_steps=4, max_sequences=8))


@pytest.fixture
def file(config: RunConfig, tmp_path: Path) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(to_mapping(config)))
    return str(path)


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_differ_in_name_and_kernels_only(
    variant: str, config: RunConfig, file: str
) -> None:
    user = ["optimizer.lr=0.5", "train.precision=fp32", "kernels.fp8=block"]
    own = load_run([file], settings_of(user, config, variant)).config
    assert own.name == f"tiny-{variant}"
    assert own.optimizer.lr == 0.5
    fp8 = variant.removeprefix("fp8-") if variant.startswith("fp8") else "none"
    layers = "torch" if variant == "bf16-torch" else "transformer_engine"
    assert (own.kernels.fp8, own.kernels.layers) == (fp8, layers)
    same = replace(own, name=config.name, kernels=config.kernels, optimizer=config.optimizer)
    assert same == replace(config, train=replace(config.train, precision="bf16"))


def test_the_last_evaluation_of_a_real_run_is_read(config: RunConfig, file: str) -> None:
    settings = settings_of([], config, "bf16-torch")
    own = load_run([file], settings).config
    with pytest.raises(TrainingError, match=f"no evaluation after step {STEPS}"):
        read_outcome(own, "bf16-torch")
    command = [sys.executable, "-m", "bt_megatron", "train", file]
    command += [word for setting in settings for word in ("--set", setting)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
    outcome = read_outcome(own, "bf16-torch")
    assert 4 < outcome.validation_loss < 7
    assert 4 < outcome.training_loss < 7
    assert outcome.tokens_per_s > 0


def test_rows_hold_the_distance_from_bf16() -> None:
    outcomes = [Outcome(REFERENCE, 3.0, 2.5, 1e5), Outcome("fp8-current", 3.25, 2.75, 2e5)]
    rows = benchmark_rows("parity", 300, outcomes)
    assert [(row.case, row.metric, row.value) for row in rows] == [
        ("precision/parity/bf16", "validation_loss", 3.0),
        ("precision/parity/fp8-current", "validation_loss", 3.25),
        ("precision/parity/fp8-current", "validation_loss_difference", 0.25),
    ]
    assert json.dumps([row.detail for row in rows])


def test_what_cannot_be_compared_is_said(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([file, "--variants", "fp8-current,fp4"]) == ConfigError.exit_code
    assert "fp4 is not known. Use some of bf16, " in capsys.readouterr().err
