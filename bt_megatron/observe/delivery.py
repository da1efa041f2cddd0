# SPDX-License-Identifier: Apache-2.0
"""From metrics.jsonl to MLflow, each record once.

The file is the buffer: mlflow.json remembers the byte up to which the server
has confirmed everything, and moves only after a confirmation. What was sent
but not confirmed (a crash, a lost answer) is sent again with the same name,
step, time and value, which MLflow's database takes as one measurement.

Steps that a resumed run takes again are new records at steps that MLflow may
already have, and MLflow cannot delete. So the first connection of a process
asks for the losses that are there: a record that repeats the loss of its step
exactly, as a resume on the same layout does, is not sent again; one that
differs is sent, because it is another result.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bt_megatron.observe.jsonl import read_lines, read_records
from bt_megatron.observe.mlflow_run import LOSSES, MlflowRun, RunStatus, read_parameters
from bt_megatron.observe.mlflow_tags import (
    STARTS,
    attempt_tags,
    environment_tags,
    plan_parameters,
)
from bt_megatron.observe.run_folder import RunFolder
from bt_megatron.observe.tracking_state import (
    TrackingState,
    artifact_location,
    resolve_uri,
    save_state,
)

RECORDS_PER_BATCH = 50


class Delivery:
    """What is still to be sent of one run folder.

    Every method but `count_unsent` may take as long as the server takes and
    raises what MLflow raises; calling again goes on where it failed.
    """

    def __init__(self, folder: RunFolder, state: TrackingState) -> None:
        """Prepare; nothing is sent or connected to."""
        self.uri = resolve_uri(state, folder)
        self._folder = folder
        self._state = state
        self._run: MlflowRun | None = None
        self._there: dict[tuple[str, int], set[float]] = {}
        self._batch_size = RECORDS_PER_BATCH

    def send_some(self) -> int:
        """Send the next records and return how many of the file they were.

        After a failure the next batch is one record, so that a slow server
        that cannot take many in time is still served.
        """
        size, self._batch_size = self._batch_size, 1
        run = self._connect()
        lines = list(read_lines(self._folder.metrics, start=self._state.metrics_offset, limit=size))
        if lines:
            records = [line.value for line in lines if line.value is not None]
            run.send_records([record for record in records if not _repeats(record, self._there)])
            self._update(metrics_offset=lines[-1].end)
        self._send_events(run)
        self._batch_size = min(2 * size, RECORDS_PER_BATCH)
        return len(lines)

    def _send_events(self, run: MlflowRun) -> None:
        """Send what new events say of attempts and checkpoints, one event after the other."""
        lines = list(read_lines(self._folder.events, start=self._state.events_offset))
        events = [line.value for line in lines if line.value is not None]
        if any(event["event"] in STARTS for event in events):
            run.send_tags(attempt_tags(read_records(self._folder.events)))
        saved = [event for event in events if event["event"] == "saved"]
        new = {event["folder"] for event in saved}
        gone = {name for event in saved for name in event["removed"]}
        for line in lines:
            if line.value is not None and line.value["event"] == "saved":
                if line.value["folder"] not in gone:
                    run.send_checkpoint(line.value, folder=self._folder.checkpoints.resolve())
                for name in set(line.value["removed"]) - new:
                    run.forget_checkpoint(name)
            self._update(events_offset=line.end)

    def finish(self, status: RunStatus) -> None:
        """Upload the files of the run and set its status."""
        folder, run = self._folder, self._connect()
        run.send_files([*self._described_by, folder.baselines, folder.loss_plot, folder.events])
        run.close(status)

    def count_unsent(self) -> int:
        """Return how many records the server has not confirmed."""
        return sum(1 for _ in read_lines(self._folder.metrics, start=self._state.metrics_offset))

    @property
    def _described_by(self) -> list[Path]:
        """The files that say what runs; there from the start, and new with each attempt."""
        return [self._folder.config, self._folder.plan, self._folder.environment]

    def _connect(self) -> MlflowRun:
        """Return the open run; the first time, find or create it."""
        if self._run is not None:
            return self._run
        state = self._state
        run = MlflowRun(
            tracking_uri=self.uri,
            experiment=state.experiment,
            artifact_location=artifact_location(state, self._folder),
        )
        save_state(self._folder, state)  # the key first: it finds a run whose creation we miss
        run_id = run.open(
            run_id=state.run_id,
            run_key=state.run_key,
            name=self._folder.path.name,
            parent=state.parent,
        )
        self._update(run_id=run_id)
        run.send_parameters(read_parameters(self._folder.config) | plan_parameters(self._folder))
        run.send_tags(environment_tags(self._folder))
        run.send_files(self._described_by)
        self._there = run.losses_by_step()
        self._run = run
        return run

    def _update(self, **changes: Any) -> None:
        """Change the state, in the folder too."""
        self._state = replace(self._state, **changes)
        save_state(self._folder, self._state)


def _repeats(record: Mapping[str, Any], there: Mapping[tuple[str, int], set[float]]) -> bool:
    """Return whether a record's loss is among those of its step."""
    return any(
        name in record and record[name] in there.get((name, record["step"]), ()) for name in LOSSES
    )
