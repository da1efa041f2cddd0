# SPDX-License-Identifier: Apache-2.0
"""The numbers of an evaluation in MLflow: in the run that trained the model, if that is known."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bt_megatron.config.schema import MlflowConfig
from bt_megatron.errors import BtError
from bt_megatron.observe.mlflow_forwarder import describe, without_password
from bt_megatron.observe.mlflow_run import MlflowRun
from bt_megatron.observe.run_folder import RunFolder
from bt_megatron.observe.tracking_state import (
    artifact_location,
    load_state,
    resolve_uri,
)

LEVELS = 2
"""How far above an exported folder the folder of its run is looked for."""
SQLITE = "sqlite:///"


@dataclass(frozen=True, kw_only=True, slots=True)
class Destination:
    """Where the numbers go."""

    uri: str
    experiment: str
    artifacts: str | None
    """Where a new experiment keeps files; None: the server decides."""
    run_id: str | None
    """The MLflow run that trained the model; None: a run of the evaluation's own."""


def run_of(folder: Path) -> RunFolder | None:
    """Return the folder of the run that an exported folder lies in, or None."""
    for parent in list(folder.resolve().parents)[:LEVELS]:
        run = RunFolder(parent)
        if run.metrics.is_file() and run.config.is_file():
            return run
    return None


def destination(
    run: RunFolder | None, *, tracking_uri: str | None, experiment: str | None
) -> Destination | None:
    """Return where to send, or None if nothing names a place.

    Args:
        run: that trained the model, if known.
        tracking_uri: None: where that run went.
        experiment: None: that of the run, or the default.

    Raises:
        DataError: the mlflow.json of the run is damaged.
    """
    state = load_state(run) if run is not None else None
    if run is not None and state is not None:
        uri = resolve_uri(state, run)
        same_place = tracking_uri in (None, uri, state.tracking_uri) and experiment in (
            None,
            state.experiment,
        )
        if same_place:
            return Destination(
                uri=uri,
                experiment=state.experiment,
                artifacts=artifact_location(state, run),
                run_id=state.run_id,
            )
    if tracking_uri is None:
        return None
    named = experiment or (state.experiment if state else MlflowConfig().experiment)
    artifacts = _beside_database(tracking_uri, named)
    return Destination(uri=tracking_uri, experiment=named, artifacts=artifacts, run_id=None)


def _beside_database(uri: str, experiment: str) -> str | None:
    """Return where files of a database go, which MLflow would put into the working directory."""
    if not uri.startswith(SQLITE):
        return None
    folder = Path(uri.removeprefix(SQLITE)).resolve().parent
    return (folder / "mlflow_artifacts" / experiment).as_uri()


def send(
    place: Destination,
    metrics: Mapping[str, float],
    files: Sequence[Path],
    *,
    step: int,
    name: str,
    key: str,
) -> None:
    """Send the numbers and files.

    Args:
        place: where to.
        metrics: by name.
        files: to upload.
        step: optimizer steps that the model has seen; the numbers stand at it.
        name: of a run of the evaluation's own.
        key: finds that run again.

    Raises:
        BtError: MLflow did not take them.

    Comm: none between ranks; talks to the server.
    """
    try:
        run = MlflowRun(
            tracking_uri=place.uri,
            experiment=place.experiment,
            artifact_location=place.artifacts,
        )
        if place.run_id is not None:
            run.run_id = place.run_id  # its status is not ours to change
        else:
            run.open(run_id=None, run_key=key, name=name)
        named = {metric_name(metric): value for metric, value in metrics.items()}
        run.send_records([{"step": step, "time": time.time(), **named}])
        run.send_files(files)
        if place.run_id is None:
            run.close("FINISHED")
    except Exception as error:  # whatever MLflow raises becomes one line for the user
        raise BtError(
            f"{without_password(place.uri)}: MLflow did not take the numbers ({describe(error)}). "
            "They are in the evaluation's folder. Start the server or pass --tracking-uri, then "
            "run the same command again: nothing is measured twice."
        ) from error


def metric_name(name: str) -> str:
    """Return a name that MLflow takes."""
    return re.sub(r"[^\w\-. :/]", ".", name)
