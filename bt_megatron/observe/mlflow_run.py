# SPDX-License-Identifier: Apache-2.0
"""One MLflow run: found or created, given parameters, metrics and files.

Every call may take as long as the server takes and may raise whatever MLflow
raises; the forwarder's thread is the place for that. Importing MLflow takes
seconds and the first use of a database many more (its migrations), so both
happen on connecting, not on importing this module.
"""

import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import batched
from pathlib import Path
from typing import Any, Literal

import yaml

from bt_megatron.observe.mlflow_tags import MLFLOW_PARENT

RunStatus = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
KEY_TAG = "bt_megatron.run_key"
PARENT_KEY = "parent:"
"""Before the name of a run that groups others, in the place of a key."""
PARAMS_PER_REQUEST = 100  # MLflow's limit, as is that for metrics
METRICS_PER_REQUEST = 1000
# One attempt of ten seconds: the forwarder repeats, and a hung server must not
# hold its thread for the minutes that MLflow's own defaults allow.
CLIENT_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
LOSSES = ("train/loss", "validation/loss")


def connect(tracking_uri: str) -> Any:
    """Return MLflow's client of a server or database; the first time, MLflow is imported."""
    for name, value in CLIENT_SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    return MlflowClient(tracking_uri=tracking_uri)


class MlflowRun:
    """A run on an MLflow server or in an MLflow database."""

    def __init__(
        self, *, tracking_uri: str, experiment: str, artifact_location: str | None
    ) -> None:
        """Connect and find or create the experiment.

        Args:
            tracking_uri: a server or database.
            experiment: name of the experiment.
            artifact_location: where a new experiment keeps files; none: the server decides.

        Comm: none between ranks; talks to the server.
        """
        self._client = connect(tracking_uri)
        found = self._client.get_experiment_by_name(experiment)
        self._experiment_id: str = (
            found.experiment_id
            if found
            else self._client.create_experiment(experiment, artifact_location=artifact_location)
        )
        self.run_id = ""

    def open(
        self, *, run_id: str | None, run_key: str, name: str, parent: str | None = None
    ) -> str:
        """Continue a run, or create it, and return its id.

        A creation whose answer was lost on the way is found by `run_key`.

        Args:
            run_id: of the run, if it is known.
            run_key: finds the run if it is not.
            name: of a new run.
            parent: name of the run that groups it with others; it is made if need be.
        """
        if run_id is None:
            found = self._find(run_key)
            run_id = found[0] if found else self._create(run_key, name, parent)
        self._client.update_run(run_id, status="RUNNING")
        self.run_id = run_id
        return run_id

    def open_parent(self, name: str) -> str:
        """Return the id of the run that groups others under a name, created if need be.

        Runs that start at the same time may each create one: the oldest stays, whoever has
        created another deletes it.
        """
        key = f"{PARENT_KEY}{name}"
        found = self._find(key)
        if not found:
            created = self._create(key, name, None)
            found = self._find(key)
            if found[0] != created:
                self._client.delete_run(created)
        return found[0]

    def _find(self, run_key: str) -> list[str]:
        """Return the ids of the runs that have a key, the oldest first."""
        found = self._client.search_runs(
            [self._experiment_id],
            filter_string=f"tags.`{KEY_TAG}` = '{run_key}'",
            order_by=["attributes.start_time ASC"],
        )
        runs = sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))
        return [str(run.info.run_id) for run in runs]

    def _create(self, run_key: str, name: str, parent: str | None) -> str:
        """Create a run."""
        tags = {KEY_TAG: run_key}
        if parent is not None:
            tags[MLFLOW_PARENT] = self.open_parent(parent)
        run = self._client.create_run(self._experiment_id, run_name=name, tags=tags)
        return str(run.info.run_id)

    def send_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; those that are there get the new value."""
        from mlflow.entities import RunTag

        for chunk in batched(tags.items(), PARAMS_PER_REQUEST):
            self._client.log_batch(
                self.run_id, tags=[RunTag(name, value) for name, value in chunk], synchronous=True
            )

    def send_parameters(self, parameters: Mapping[str, str]) -> None:
        """Log parameters; one that changed since becomes a tag `changed.<name>`.

        MLflow keeps a parameter's first value for ever.
        """
        from mlflow.entities import Param, RunTag

        there: dict[str, str] = self._client.get_run(self.run_id).data.params
        new = [Param(k, v) for k, v in parameters.items() if k not in there]
        changed = [RunTag(f"changed.{k}", v) for k, v in parameters.items() if there.get(k, v) != v]
        for chunk in batched(new, PARAMS_PER_REQUEST):
            self._client.log_batch(self.run_id, params=list(chunk), synchronous=True)
        for tags in batched(changed, PARAMS_PER_REQUEST):
            self._client.log_batch(self.run_id, tags=list(tags), synchronous=True)

    def losses_by_step(self) -> dict[tuple[str, int], set[float]]:
        """Return every loss that the server has, by metric name and step."""
        losses: dict[tuple[str, int], set[float]] = {}
        for name in LOSSES:
            for metric in self._client.get_metric_history(self.run_id, name):
                losses.setdefault((name, metric.step), set()).add(metric.value)
        return losses

    def send_records(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Log the metrics of records, each at its own step and time."""
        from mlflow.entities import Metric

        metrics = [
            Metric(key, value, round(record["time"] * 1000), record["step"])
            for record in records
            for key, value in finite_metrics(record)
        ]
        for chunk in batched(metrics, METRICS_PER_REQUEST):
            self._client.log_batch(self.run_id, metrics=list(chunk), synchronous=True)

    def send_checkpoint(self, event: Mapping[str, Any], *, folder: Path) -> None:
        """Register a checkpoint as a model of the run, and delete those that it replaces.

        What is registered is where it lies; its files stay there.

        Args:
            event: a `saved` event.
            folder: the parent of the checkpoints.
        """
        from mlflow.entities import LoggedModelOutput

        name, step = event["folder"], int(event["step"])
        tags = {"path": str(folder / name), "step": str(step)}
        for model_id, status in self._checkpoints(name).items():
            if status == "READY":
                return  # a confirmation that was lost on the way
            self._client.delete_logged_model(model_id)
        model = self._client.create_logged_model(
            self._experiment_id,
            name=name,
            source_run_id=self.run_id,
            tags=tags,
            model_type="training checkpoint",
        )
        self._client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, step)])
        self._client.finalize_logged_model(model.model_id, "READY")

    def forget_checkpoint(self, name: str) -> None:
        """Delete a checkpoint that exists no more from the models of the run."""
        for model_id in self._checkpoints(name):
            self._client.delete_logged_model(model_id)

    def _checkpoints(self, name: str) -> dict[str, str]:
        """Return id and status of the run's models of a name."""
        found = self._client.search_logged_models(
            [self._experiment_id],
            filter_string=f"source_run_id = '{self.run_id}' AND name = '{name}'",
        )
        return {model.model_id: str(model.status) for model in found}

    def send_files(self, paths: Sequence[Path]) -> None:
        """Upload those of the files that exist."""
        for path in paths:
            if path.is_file():
                self._client.log_artifact(self.run_id, str(path))

    def close(self, status: RunStatus) -> None:
        """Set the run's status."""
        self._client.set_terminated(self.run_id, status)


def finite_metrics(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield name and value of the metrics of a record that are known and finite."""
    for key, value in record.items():
        if "/" in key and isinstance(value, int | float) and math.isfinite(value):
            yield key, float(value)


def read_parameters(config: Path) -> dict[str, str]:
    """Return the values of a resolved configuration by dotted key.

    A run folder without one has no parameters.
    """
    if not config.is_file():
        return {}
    return dict(_flatten(yaml.safe_load(config.read_text()) or {}))


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield dotted key and text of every leaf of nested mappings."""
    if not isinstance(value, dict):
        yield prefix, "null" if value is None else str(value)
        return
    for key, inner in value.items():
        yield from _flatten(inner, f"{prefix}.{key}" if prefix else str(key))
