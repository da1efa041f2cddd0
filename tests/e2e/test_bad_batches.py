# SPDX-License-Identifier: Apache-2.0
"""A loss that is not finite, or a spike: computed again, left out, recorded; the same on resume."""

import math
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from bt_megatron.config.schema import FaultConfig
from bt_megatron.data.prefetch import PrefetchedBatches
from bt_megatron.errors import DivergenceError
from bt_megatron.observe.jsonl import read_records
from bt_megatron.training import step as training_step
from bt_megatron.training.step import TrainingStep
from tests.tiny_run import tiny_run
from tests.training_process import Training, last_step

ALWAYS = 1_000_000


def spoil(step: int, factor: float, *, times: int = ALWAYS):
    """Return a function that multiplies the loss of a step, from 1, a number of times."""

    def prepare(_rank: int) -> None:
        next_batch, take = PrefetchedBatches.__next__, TrainingStep.train
        sum_loss = training_step._sum_loss
        state = {"is_now": False, "times": times}

        def next_and_note(batches):
            state["is_now"] = batches.step + 1 == step
            return next_batch(batches)

        def train(training, batches, **named):
            result = take(training, batches, **named)
            state["times"] -= state["is_now"]
            return result

        def spoiled(losses, **named):
            spoils = state["is_now"] and state["times"] > 0
            return sum_loss(losses * (factor if spoils else 1.0), **named)

        PrefetchedBatches.__next__ = next_and_note
        TrainingStep.train = train
        training_step._sum_loss = spoiled

    return prepare


def run(config, folder: Path, prepare=None, *, world_size: int = 1) -> Training:
    training = Training(config, folder, world_size=world_size, prepare=prepare)
    assert training.wait() == [0] * world_size, training.output
    return training


def losses(training: Training) -> dict[int, float | None]:
    records = read_records(training.folder.metrics)
    return {r["step"]: r["train/loss"] for r in records if r["kind"] == "step"}


def events(training: Training, kind: str) -> list[dict]:
    return [e for e in read_records(training.folder.events) if e["event"] == kind]


def test_a_loss_that_was_computed_wrongly_changes_nothing(tiny_data, tmp_path):
    config = tiny_run(tiny_data, tmp_path / "once")
    undisturbed = run(replace(config, runs_dir=str(tmp_path / "none")), tmp_path / "a")
    training = run(config, tmp_path / "b", spoil(7, math.nan, times=1), world_size=2)

    (event,) = events(training, "recomputed")
    assert event["step"] == 7
    assert events(training, "skipped") == []
    assert losses(training) == pytest.approx(losses(undisturbed), abs=1e-6)  # two processes


@pytest.mark.parametrize("factor", [math.nan, 40.0], ids=["not finite", "spike"])
def test_a_bad_batch_is_left_out_and_a_resumed_run_agrees(factor, tiny_data, tmp_path):
    config = tiny_run(tiny_data, tmp_path / "killed")
    prepare = spoil(18, factor)
    undisturbed = run(replace(config, runs_dir=str(tmp_path / "whole")), tmp_path / "a", prepare)
    (skipped,) = events(undisturbed, "skipped")
    assert skipped["step"] == 18
    assert "the loss is" in skipped["why"]

    training = Training(config, tmp_path / "b", prepare=prepare)
    training.wait_until(lambda: last_step(training.folder) >= 12)
    training.signal(signal.SIGKILL)
    training.wait()
    resumed = run(config, tmp_path / "b", prepare)

    assert losses(resumed) == losses(undisturbed)
    assert len(events(resumed, "skipped")) == 1
    last = read_records(resumed.folder.metrics)[-2]
    assert last["train/skipped_steps"] == 1


def test_a_run_that_diverges_says_so(tiny_data, tmp_path):
    config = tiny_run(tiny_data, tmp_path / "runs", faults=FaultConfig(max_skipped_batches=0))
    training = Training(config, tmp_path, prepare=spoil(5, math.nan))

    assert training.wait() == [DivergenceError.exit_code], training.output
    assert "error: step 5: the loss is nan and the gradient norm " in training.output
    assert "1 batches of the last 1000 steps were left out" in training.output
    assert "Traceback" not in training.output


def overflow(_rank: int) -> None:
    """Let the gradient of step 8 not be finite, whatever the loss is."""
    original = TrainingStep.accumulate

    def accumulate(training, batches):
        totals = original(training, batches)
        training.calls = getattr(training, "calls", 0) + 1
        if training.calls in (8, 9):  # the second time it is computed again
            for parameter in training.chunks[0].parameters():
                parameter.main_grad.fill_(math.nan)
        return totals

    TrainingStep.accumulate = accumulate


def test_a_gradient_that_is_not_finite_leaves_the_weights(tiny_data, tmp_path):
    training = run(tiny_run(tiny_data, tmp_path / "runs"), tmp_path, overflow)

    (skipped,) = events(training, "skipped")
    assert skipped["step"] == 8
    assert "the gradient norm nan, computed twice" in skipped["why"]
    assert losses(training)[20] < losses(training)[7]
