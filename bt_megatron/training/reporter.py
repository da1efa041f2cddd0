# SPDX-License-Identifier: Apache-2.0
"""Where a run reports to: console, metrics.jsonl, events.jsonl, MLflow. Rank 0 only."""

import contextlib
from collections.abc import Mapping
from typing import Any

from bt_megatron.checkpoint.writer import Saved
from bt_megatron.config.plan import Plan
from bt_megatron.config.schema import RunConfig
from bt_megatron.data.mixture import Drawn
from bt_megatron.errors import DataError
from bt_megatron.observe.console import Console
from bt_megatron.observe.environment import describe_attempt
from bt_megatron.observe.jsonl import BatchEvent, EventsLog, MetricsLog, rewind
from bt_megatron.observe.mlflow_forwarder import MlflowForwarder
from bt_megatron.observe.mlflow_run import RunStatus
from bt_megatron.observe.plot import plot_loss
from bt_megatron.observe.record import EvaluationRecord, StepRecord
from bt_megatron.observe.run_folder import RunFolder
from bt_megatron.observe.system import SystemSampler

MLFLOW_CLOSE_S = 60.0
"""How long the end of a run waits for MLflow."""


def drawn_metrics(drawn: Mapping[str, Drawn]) -> dict[str, float]:
    """Name what has been read of each subset: data/<name>/tokens, epochs and share."""
    return {
        f"data/{name}/{key}": getattr(amount, key)
        for name, amount in drawn.items()
        for key in ("tokens", "epochs", "share")
    }


class Reporter:
    """Writes every record to every sink."""

    def __init__(
        self, folder: RunFolder, config: RunConfig, plan: Plan, console: Console, *, step: int
    ) -> None:
        """Open the sinks, without what an earlier attempt logged after `step`.

        Args:
            folder: of the run; config.resolved.yaml and plan.json are written.
            config: of the run.
            plan: of the run.
            console: for people.
            step: steps taken so far.
        """
        self._folder, self._plan, self._console = folder, plan, console
        rewind(folder, step=step)
        self._metrics, self._events = MetricsLog(folder), EventsLog(folder)
        self._sampler: SystemSampler | None = None
        if config.log.mlflow is None or config.log.mlflow.system_metrics:
            self._sampler = SystemSampler()
            self._sampler.start()
        self._forwarder = None
        if config.log.mlflow is not None:
            self._forwarder = MlflowForwarder(folder, config=config.log.mlflow, console=console)
            self._forwarder.start()
        attempt = {"world_size": plan.world_size, **describe_attempt()}
        self._events.write("resumed" if step else "started", step=step, **attempt)

    def first_step(self, *, step: int) -> None:
        """Report the first step of this process: up to here it was starting."""
        self._events.write("first_step", step=step)

    def step(self, record: StepRecord, *, drawn: Mapping[str, Drawn]) -> None:
        """Report a logged step.

        Args:
            record: what it measured.
            drawn: what has been read of each subset of the data.
        """
        self._console.step(record)
        extra = self._sampler.latest() if self._sampler else {}
        self._metrics.write(record, extra=extra | drawn_metrics(drawn))

    def evaluation(self, record: EvaluationRecord, *, seconds: float) -> None:
        """Report an evaluation and how long it took."""
        self._console.evaluation(record, total_steps=self._plan.steps)
        self._metrics.write(record)
        self._events.write(
            "evaluated", step=record.step, loss=record.loss, seconds=round(seconds, 4)
        )

    def saved(self, saved: Saved) -> None:
        """Report a checkpoint that has become complete."""
        size_mib = saved.manifest.size_bytes / 2**20
        self._console.note(f"saved {saved.folder} ({size_mib:,.1f} MiB)")
        self._events.write(
            "saved",
            step=saved.manifest.step,
            folder=saved.folder.name,
            removed=[folder.name for folder in saved.removed],
            begun=saved.begun,
            stall_s=round(saved.stall_s, 4),
        )

    def batch(self, kind: BatchEvent, **details: Any) -> None:
        """Report that the batch of a step is not used, or what led to that."""
        self._events.write(kind, **details)
        self._console.warn(f"step {details['step']}: batch {kind}: {details['why']}")

    def close(self, *, step: int, status: RunStatus, reason: str) -> None:
        """Draw the loss, write the last event and wait a bounded time for MLflow."""
        self._events.write("stopped", step=step, reason=reason, status=status)
        if self._sampler is not None:
            self._sampler.close()
        self._metrics.close()
        self._events.close()
        with contextlib.suppress(DataError):  # stopped before the first logged step
            plot_loss([self._folder], self._folder.loss_plot)
        if self._forwarder is not None:
            self._forwarder.close(status=status, timeout_s=MLFLOW_CLOSE_S)
