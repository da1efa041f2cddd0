# SPDX-License-Identifier: Apache-2.0
"""The loop: steps until the run is complete or asked to stop."""

from typing import Literal

import torch.distributed as dist

from bt_megatron.training.run import Run
from bt_megatron.training.schedule import learning_rate
from bt_megatron.training.step import StepResult

Ended = Literal["complete", "stopped"]


def train(run: Run) -> Ended:
    """Take optimizer steps until the run is complete or asked to stop.

    A stop is agreed on by all ranks at the end of a step, and a checkpoint of
    that step is written before this returns.

    Comm: inside the parts; must be called by all ranks.
    """
    stopping = False
    while run.step < run.plan.steps and not stopping:
        result = _take_step(run)
        stopping = result.totals.stop_requests > 0
        is_last = run.step == run.plan.steps
        if is_last or run.step % run.config.log.interval_steps == 0:
            _log(run, result)
        with run.meter.pausing():
            if is_last or run.step % run.config.evaluation.interval_steps == 0:
                run.watch.enter("evaluation", step=run.step)
                _evaluate(run)
            if is_last or stopping or run.step % run.config.checkpoint.interval_steps == 0:
                run.watch.enter("checkpoint", step=run.step)
                run.save()
        if run.checkpoints.is_busy:
            run.watch.enter("checkpoint", step=run.step)
        run.report_saved(run.checkpoints.poll())
    run.watch.enter("end", step=run.step)
    run.report_saved(run.checkpoints.finish())
    dist.barrier()  # rank 0 is still completing the checkpoint; a launcher kills who is left alone
    return "stopped" if run.step < run.plan.steps else "complete"


def _take_step(run: Run) -> StepResult:
    run.watch.enter("data", step=run.step + 1)
    with run.meter.waiting():
        batches = next(run.batches).receive()
    run.watch.enter("step", step=run.step + 1)
    result = run.training.train(
        batches, step=run.step, lr=_rate(run, run.step), stop_requested=run.stop.is_set
    )
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
    )
    if run.reporter is not None:
        run.reporter.step(record, drawn=run.data.training.drawn(run.step))


def _evaluate(run: Run) -> None:
    record = run.evaluation.measure(step=run.step)
    if run.reporter is not None:
        run.reporter.evaluation(record)
