# SPDX-License-Identifier: Apache-2.0
"""How far MLflow has followed a run: the contents of mlflow.json in its folder."""

import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import orjson

from bt_megatron.errors import DataError
from bt_megatron.observe.atomic_file import write_atomically
from bt_megatron.observe.run_folder import RunFolder

SCHEMA = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingState:
    """Where the metrics of a run go and how many of them have arrived."""

    tracking_uri: str | None
    """Any MLflow URI; none: mlflow.db next to the run folder."""
    experiment: str
    """Name of the MLflow experiment."""
    run_key: str
    """Tag that finds the MLflow run again if the answer to its creation was lost."""
    run_id: str | None = None
    """The MLflow run; none: not created yet."""
    metrics_offset: int = 0
    """Byte of metrics.jsonl up to which the server has confirmed everything."""
    events_offset: int = 0
    """The same of events.jsonl."""
    parent: str | None = None
    """Name of the MLflow run that groups this one with others."""


def load_state(folder: RunFolder) -> TrackingState | None:
    """Return the state of a run folder, or None if nothing has tracked it yet.

    Raises:
        DataError: mlflow.json is not what this program writes.
    """
    if not folder.tracking.exists():
        return None
    try:
        value = orjson.loads(folder.tracking.read_bytes())
        assert value.pop("schema") == SCHEMA
        return TrackingState(**value)
    except (orjson.JSONDecodeError, AssertionError, AttributeError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder.tracking}: not a tracking state of schema {SCHEMA} ({error}). Delete it: "
            "a new MLflow run is then made from metrics.jsonl."
        ) from error


def save_state(folder: RunFolder, state: TrackingState) -> None:
    """Replace mlflow.json."""
    content = orjson.dumps({"schema": SCHEMA, **asdict(state)}, option=orjson.OPT_INDENT_2)
    write_atomically(folder.tracking, content + b"\n")


def continue_state(
    folder: RunFolder, *, tracking_uri: str | None, experiment: str, parent: str | None = None
) -> TrackingState:
    """Return the state to go on from: the saved one where it means the same place.

    Another URI or experiment is another place: a new MLflow run is made there,
    and all of metrics.jsonl is sent to it. A file that is shorter than what was
    confirmed was rewound on resume: what is appended from here on is new.
    """
    state = load_state(folder)
    if state is None or (state.tracking_uri, state.experiment) != (tracking_uri, experiment):
        return TrackingState(
            tracking_uri=tracking_uri,
            experiment=experiment,
            run_key=uuid.uuid4().hex,
            parent=parent,
        )
    size = folder.metrics.stat().st_size if folder.metrics.exists() else 0
    return replace(state, metrics_offset=min(state.metrics_offset, size))


def resolve_uri(state: TrackingState, folder: RunFolder) -> str:
    """Return the URI to connect to, with the default filled in."""
    return state.tracking_uri or f"sqlite:///{_runs_dir(folder) / 'mlflow.db'}"


def artifact_location(state: TrackingState, folder: RunFolder) -> str | None:
    """Return where a new experiment keeps files: here for a database, else the server's choice."""
    if not resolve_uri(state, folder).startswith("sqlite:"):
        return None
    return (_runs_dir(folder) / "mlflow_artifacts" / state.experiment).as_uri()


def _runs_dir(folder: RunFolder) -> Path:
    """Return the folder that the run folder lies in, absolute."""
    return folder.path.resolve().parent
