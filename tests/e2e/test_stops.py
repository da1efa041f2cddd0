# SPDX-License-Identifier: Apache-2.0
"""A run that is asked to stop outside of a step: while it starts, while it evaluates."""

import signal
from dataclasses import replace

from bt_megatron.observe.jsonl import read_records
from bt_megatron.training import evaluate, run
from bt_megatron.training.step import TrainingStep
from bt_megatron.training.stop import EXIT_STOPPED
from tests.tiny_run import tiny_run
from tests.training_process import Training, last_step


def ask_at_the_start(rank: int) -> None:
    original = run.open_data

    def open_data(*positional, **named):
        if rank == 1:
            signal.raise_signal(signal.SIGUSR1)
        return original(*positional, **named)

    run.open_data = open_data


def ask_in_the_evaluation(step: int):
    """Return a function that sends a signal after the first micro-batch of an evaluation."""

    def prepare(rank: int) -> None:
        measure, of_batches = evaluate.Evaluation.measure, TrainingStep.evaluate
        state = {"step": 0}

        def measure_and_note(evaluation, *, step: int, **named):
            state["step"] = step
            return measure(evaluation, step=step, **named)

        def evaluate_and_ask(training, batches, **named):
            totals = of_batches(training, batches, **named)
            if rank == 1 and state["step"] == step:
                signal.raise_signal(signal.SIGUSR1)
            return totals

        evaluate.GROUP = 1
        evaluate.Evaluation.measure = measure_and_note
        TrainingStep.evaluate = evaluate_and_ask

    return prepare


def record_of(training: Training) -> dict:
    names = {"step": "train/loss", "evaluation": "validation/loss"}
    records = read_records(training.folder.metrics)
    return {(r["kind"], r["step"]): r[names[r["kind"]]] for r in records}


def one_by_one(_rank: int) -> None:
    evaluate.GROUP = 1


def test_a_stop_during_the_start_takes_no_step(tiny_data, tmp_path):
    config = tiny_run(tiny_data, tmp_path / "runs")
    training = Training(config, tmp_path, world_size=2, prepare=ask_at_the_start)

    assert training.wait() == [EXIT_STOPPED] * 2, training.output
    assert last_step(training.folder) == 0
    assert "stopped at step 0 of 20" in training.output


def test_an_evaluation_that_is_broken_off_is_done_on_resume(tiny_data, tmp_path):
    config = tiny_run(tiny_data, tmp_path / "undisturbed")
    undisturbed = Training(config, tmp_path / "a", world_size=2, prepare=one_by_one)
    assert undisturbed.wait() == [0, 0], undisturbed.output

    config = replace(config, runs_dir=str(tmp_path / "stopped"))
    for step in (10, 20):
        prepare = ask_in_the_evaluation(step)
        stopped = Training(config, tmp_path / "b", world_size=2, prepare=prepare)
        assert stopped.wait() == [EXIT_STOPPED] * 2, stopped.output
        assert ("evaluation", step) not in record_of(stopped)
        assert last_step(stopped.folder) == step
    resumed = Training(config, tmp_path / "b", world_size=2, prepare=one_by_one)
    assert resumed.wait() == [0, 0], resumed.output
    assert record_of(resumed) == record_of(undisturbed)
