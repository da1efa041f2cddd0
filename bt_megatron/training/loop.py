# SPDX-License-Identifier: Apache-2.0
"""The loop: steps until the run is complete or asked to stop."""

import time
from typing import Literal

import torch
import torch.distributed as dist

from bt_megatron.training.guarded_step import guarded_step
from bt_megatron.training.run import Run
from bt_megatron.training.schedule import learning_rate
from bt_megatron.training.step import StepResult

Ended = Literal["complete", "stopped"]


def train(run: Run) -> Ended:
    """Take optimizer steps until the run is complete or asked to stop.

    A stop is agreed on by all ranks at the end of a step, and a checkpoint of that step is
    written before this returns. One that came during the start ends the run before any step:
    the checkpoint that it started from is still the newest. One that comes during an evaluation
    breaks it off, and the run begins with that evaluation when it is resumed.

    Comm: inside the parts; must be called by all ranks.
    """
    stopping, is_settled = _any_asked_to_stop(run), False
    if run.owes_evaluation and not stopping:
        stopping = not _evaluate(run)
    while run.step < run.plan.steps and not stopping:
        result = _take_step(run)
        stopping = result.totals.stop_requests > 0
        is_last = run.step == run.plan.steps
        if is_last or run.step % run.config.log.interval_steps == 0:
            _log(run, result)
        with run.meter.pausing():
            if not is_settled:
                run.settle()
                is_settled = True
            if is_last or run.step % run.config.evaluation.interval_steps == 0:
                stopping = not _evaluate(run) or stopping
            if is_last or stopping or run.step % run.config.checkpoint.interval_steps == 0:
                run.watch.enter("checkpoint", step=run.step)
                run.save()
        if run.checkpoints.is_busy:
            run.watch.enter("checkpoint", step=run.step)
        run.report_saved(run.checkpoints.poll())
    run.watch.enter("end", step=run.step)
    run.report_saved(run.checkpoints.finish())
    dist.barrier()  # rank 0 is still completing the checkpoint; a launcher kills who is left alone
    is_complete = run.step == run.plan.steps and not run.owes_evaluation
    return "complete" if is_complete else "stopped"


def _any_asked_to_stop(run: Run) -> bool:
    """Return whether any rank was asked to stop by now.

    Comm: all-reduce of one number over all ranks.
    """
    asked = torch.tensor(float(run.stop.is_set), device=torch.cuda.current_device())
    dist.all_reduce(asked)
    return bool(asked.item() > 0)


def _take_step(run: Run) -> StepResult:
    run.watch.enter("data", step=run.step + 1)
    with run.meter.waiting():
        batches = next(run.batches).receive()
    run.watch.enter("step", step=run.step + 1)
    result = guarded_step(run, batches, lr=_rate(run, run.step))
    run.checkpoints.after_step()
    run.step += 1
    run.meter.count_step()
    return result


def _rate(run: Run, step: int) -> float:
    return learning_rate(step, run.config.optimizer, run.plan.steps)


def _log(run: Run, result: StepResult) -> None:
    record = run.meter.record(
        step=run.step,
        loss=result.totals.loss,
        grad_norm=result.grad_norm,
        lr=_rate(run, run.step - 1),
        skipped_steps=run.guard.skipped_here,
    )
    if run.reporter is not None:
        run.reporter.step(record, drawn=run.data.training.drawn(run.step))


def _evaluate(run: Run) -> bool:
    """Evaluate; return whether that came to its end, or was broken off by a stop."""
    run.watch.enter("evaluation", step=run.step)
    start = time.monotonic()
    record = run.evaluation.measure(step=run.step, stop=run.stop)
    run.owes_evaluation = record is None
    if record is not None and run.reporter is not None:
        run.reporter.evaluation(record, seconds=time.monotonic() - start)
    return record is not None
