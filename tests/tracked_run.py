# SPDX-License-Identifier: Apache-2.0
"""A run folder with a forwarder as the trainer uses them, and what an MLflow has of it."""

import io
import time
from pathlib import Path
from typing import Any

import orjson

from bt_megatron.config.schema import MlflowConfig
from bt_megatron.observe.console import Console
from bt_megatron.observe.jsonl import EventsLog, MetricsLog, read_records
from bt_megatron.observe.mlflow_forwarder import MlflowForwarder
from bt_megatron.observe.record import StepRecord
from bt_megatron.observe.run_folder import RunFolder

ENOUGH_S = 60.0
CONFIG = """\
name: tiny  # tiny.yaml:1
train:
  steps: 100  # tiny.yaml:3
optimizer:
  lr: 1.0e-03  # default
  decay_steps: null  # default
"""


def step_record(step: int, *, loss: float | None = None, speed: float = 1e4) -> StepRecord:
    return StepRecord(
        step=step,
        total_steps=100,
        tokens=step * 1024,
        loss=10.0 / step if loss is None else loss,
        grad_norm=0.1,
        lr=1e-3,
        skipped_steps=0,
        tokens_per_s=speed,
        tokens_per_s_per_device=speed,
        tokens_per_s_average=speed,
        mfu=None,
        step_s=0.1,
        data_wait_fraction=0.0,
        eta_s=1.0,
        memory_gib=None,
        memory_total_gib=None,
    )


class Run:
    """A run folder with a forwarder, as the trainer uses them."""

    def __init__(
        self, path: Path, uri: str | None, *, config: str = CONFIG, parent: str | None = None
    ) -> None:
        self.folder = RunFolder(path)
        path.mkdir(parents=True, exist_ok=True)
        self.folder.config.write_text(config)
        self.screen = io.StringIO()
        self.forwarder = MlflowForwarder(
            self.folder,
            config=MlflowConfig(tracking_uri=uri, experiment="tests", parent=parent),
            console=Console(stream=self.screen),
        )
        self.log, self.events = MetricsLog(self.folder), EventsLog(self.folder)
        self.forwarder.start()

    def write(self, steps: range, **values: Any) -> None:
        for step in steps:
            self.log.write(step_record(step, **values))

    def close(self, *, timeout_s: float = ENOUGH_S) -> int:
        self.log.close()
        self.events.close()
        return self.forwarder.close(status="FINISHED", timeout_s=timeout_s)

    @property
    def state(self) -> dict[str, Any]:
        path = self.folder.tracking
        return orjson.loads(path.read_bytes()) if path.exists() else {"metrics_offset": 0}

    def wait_until_sent(self) -> None:
        deadline = time.monotonic() + ENOUGH_S
        while self.state["metrics_offset"] < self.folder.metrics.stat().st_size:
            assert time.monotonic() < deadline, self.screen.getvalue()
            time.sleep(0.02)

    def wait_for_text(self, text: str) -> None:
        deadline = time.monotonic() + ENOUGH_S
        while text not in self.screen.getvalue():
            assert time.monotonic() < deadline, self.screen.getvalue()
            time.sleep(0.02)


class Tracked:
    """What an MLflow has of a run."""

    def __init__(self, uri: str, run: Run) -> None:
        from mlflow import MlflowClient

        self.client = MlflowClient(tracking_uri=uri)
        self.run_id = run.state["run_id"]
        self.run = self.client.get_run(self.run_id)

    def history(self, name: str) -> list[tuple[int, float, int]]:
        metrics = self.client.get_metric_history(self.run_id, name)
        return sorted((m.step, m.value, m.timestamp) for m in metrics)


def logged(folder: RunFolder, name: str) -> list[tuple[int, float, int]]:
    return [
        (r["step"], r[name], round(r["time"] * 1000))
        for r in read_records(folder.metrics)
        if name in r
    ]
